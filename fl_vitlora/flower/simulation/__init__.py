"""The simulation: Flower clients that are virtual nodes, trained in Ray processes (workers)."""
