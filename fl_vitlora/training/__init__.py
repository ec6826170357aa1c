"""Local training: of one client, or of many in one batch, from the same pieces."""
