"""Attacks on this project's own ciphertext and models, to tell what a key withstands."""
