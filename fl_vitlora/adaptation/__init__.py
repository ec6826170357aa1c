"""Decides how keys change the patch embedding, and converts it between server and clients."""
