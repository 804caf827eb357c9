"""Benchmark suite: installs as ``oneshot.bench``."""
