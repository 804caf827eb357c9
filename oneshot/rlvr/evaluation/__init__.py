"""Accuracy on held-out problems and on benchmarks."""
