"""Readers of weak labels, one module per format, and the registry that chooses among them."""
