"""The server loop, its data classes and its callbacks; this package does not import Flower."""
