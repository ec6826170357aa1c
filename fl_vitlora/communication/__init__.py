"""What goes over the wire, and how many bytes of it."""
