"""Perceptual encryption: the data owner hides images from human eyes, block by block."""
