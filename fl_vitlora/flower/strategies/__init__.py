"""One interface for the strategies of this project and those of Flower."""
