"""The clients of a federation: participants, their ranks, hostile and unreliable clients."""
