"""CHMM: one label sequence from many noisy sources, and a tagger trained on it (CHMM-ALT).

Li, Shetty, Liu, Zhang and Song 2021, "BERTifying the Hidden Markov Model for Multi-Source Weakly
Supervised Named Entity Recognition" (ACL, arXiv 2105.12848).
"""
