"""Limits what the server learns about clients: secure aggregation, and differential privacy."""
