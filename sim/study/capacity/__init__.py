"""How much load a cluster carries, and how many GPUs a load needs."""
