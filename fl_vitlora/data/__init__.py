"""Loads images, divides them among clients, and writes each client's images as encrypted files."""
