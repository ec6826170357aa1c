"""The server loop, its data classes and its callbacks. This package does not depend on Flower."""
