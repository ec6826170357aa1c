"""Loads images, divides them among clients, and writes them to disk as encrypted shards."""
