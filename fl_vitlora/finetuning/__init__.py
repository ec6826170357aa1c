"""Fine-tuning methods, which decide which tensors of a model are trained and exchanged."""
