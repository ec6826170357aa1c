"""Federated fine-tuning of vision transformers on encrypted images."""

__version__ = "0.1.0"
