"""From images of any source to encrypted shards on disk, one for each client."""
