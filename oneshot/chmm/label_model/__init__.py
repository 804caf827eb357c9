"""The parts of the CHMM around its chain: observations, networks, start, training."""
