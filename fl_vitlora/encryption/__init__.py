"""Perceptual encryption of images, block by block; pure, and known to the data owner alone."""
