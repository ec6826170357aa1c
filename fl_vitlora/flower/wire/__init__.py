"""What stands in the Flower messages of a round, and how many bytes that is."""
