"""The contents of the Flower messages of a round, and their sizes in bytes."""
