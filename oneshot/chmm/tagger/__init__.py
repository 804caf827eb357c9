"""The token classifier: model, training, and its predictions as one more source."""
