"""The server's side of a round: sends messages to clients and receives their updates."""
