"""Backbones: any ViT of timm, and a small ViT whose weights ship with the package."""
