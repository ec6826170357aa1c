"""The server's side of a round: messages out, updates in."""
