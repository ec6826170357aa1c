"""Attacks on this project's own, locally made ciphertext and models; they say what a key withstands."""
