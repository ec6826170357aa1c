"""One interface for the strategies of this project and the strategies of Flower."""
