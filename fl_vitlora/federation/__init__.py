"""The server loop, its values and its callbacks. This package does not depend on Flower."""
