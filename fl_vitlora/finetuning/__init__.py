"""Fine-tuning methods; a method decides which tensors of a model are trained and exchanged."""
