"""Chooses clients: the participants of a round, the rank of each, hostile and unreliable ones."""
