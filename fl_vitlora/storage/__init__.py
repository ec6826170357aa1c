"""Writes files completely or not at all, and detects damaged files."""
