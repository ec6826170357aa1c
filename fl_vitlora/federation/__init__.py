"""The server loop, with its data classes and callbacks; this package does not import Flower."""
