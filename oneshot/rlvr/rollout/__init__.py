"""Sampling responses: one engine protocol, transformers and vLLM behind it."""
