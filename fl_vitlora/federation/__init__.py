"""The server loop and what it works with. This room does not know Flower."""
