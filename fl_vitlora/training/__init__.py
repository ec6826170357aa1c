"""Local training of one client, or of many clients in one batch, and the evaluation of a model."""
