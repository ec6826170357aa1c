"""Flower clients as virtual nodes, with Ray processes as workers."""
