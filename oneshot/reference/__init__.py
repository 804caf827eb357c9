"""The definition of every op in plain PyTorch: readable, any device, the oracle of the tests."""
