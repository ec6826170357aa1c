"""The contents of the Flower messages of a round, and the sizes of these messages in bytes."""
