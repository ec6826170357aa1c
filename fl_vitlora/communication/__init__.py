"""The contents and the size in bytes of the messages between server and clients."""
