"""Perceptual encryption of images, block by block: pure functions that only the data owner runs."""
