"""Fine-tuning methods: which tensors of a model are trained and exchanged."""
