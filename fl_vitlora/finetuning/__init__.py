"""What of a model is trained and exchanged."""
