"""The simulation: Flower clients as virtual nodes, which Ray processes (workers) train."""
