"""The messages between server and clients, and the count of their bytes."""
