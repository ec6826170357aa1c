"""Builds the pre-trained models: any ViT of timm, or a small ViT that is part of this package."""
