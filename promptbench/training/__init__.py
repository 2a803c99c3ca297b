"""The training loop, its numerics and its files."""
