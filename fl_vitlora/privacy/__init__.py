"""Limits on what the server learns: secure aggregation, and noise for differential privacy."""
