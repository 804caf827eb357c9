"""What can go wrong in training."""


class NonFiniteLossError(FloatingPointError):
    """A loss became NaN or infinite; training stopped before it could spoil the weights."""


class NoGoldError(ValueError):
    """Something needs gold labels, and the sentences have none."""
