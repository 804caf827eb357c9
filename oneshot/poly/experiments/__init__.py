"""Experiments: known routing, the papers' comparison on a small scale, composed string tasks."""
