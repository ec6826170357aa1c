"""Chooses a round's participants, the ranks of clients, and hostile and unreliable clients."""
