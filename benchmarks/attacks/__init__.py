"""Attacks on this project's own ciphertext and models, to measure how secure a key is."""
