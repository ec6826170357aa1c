"""The mathematics of reconstructing images from the gradient of a model."""
