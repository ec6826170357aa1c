"""Decides how keys change the patch embedding, and converts patch embeddings between parties."""
