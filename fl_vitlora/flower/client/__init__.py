"""The client's side of a round: the ClientApp, and the memory of a client between rounds."""
