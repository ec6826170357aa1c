"""Strategies of this project and of Flower behind one interface."""
