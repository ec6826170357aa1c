"""Sources of images, their partition among clients, and the encrypted shards on disk."""
