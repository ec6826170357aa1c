"""Decides how keys change patch embeddings, and converts these between server and clients."""
