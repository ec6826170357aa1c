"""Perceptual encryption: pure functions that hide images block by block, run by their owner."""
