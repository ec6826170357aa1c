"""A client's side of a round: the ClientApp and what it remembers."""
