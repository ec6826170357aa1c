"""The clients of a federation: who takes part, with which rank, who is hostile and who fails."""
