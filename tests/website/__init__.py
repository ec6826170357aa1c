"""Tests of the documentation site, and of the commands on its tutorials."""
