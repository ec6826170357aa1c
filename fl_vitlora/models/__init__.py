"""Backbones: any timm ViT, and the small one whose weights ship with the package."""
