"""The frozen encoder: words as subwords, and their embeddings."""
