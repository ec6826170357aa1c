"""Builds backbones: any ViT of timm, or a small ViT whose weights are part of this package."""
