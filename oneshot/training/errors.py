"""Errors that the command line reports as one line instead of a traceback."""

EXPECTED = (ValueError, OSError, RuntimeError, ImportError)
"""What a command may raise because of its input or the machine. Anything else is a defect."""


class RunError(RuntimeError):
    """A run cannot start or continue; the message says why and what to do."""


class NonFiniteLossError(RunError, FloatingPointError):
    """A loss, a log-likelihood or a gradient is NaN or infinite; the weights are unchanged."""
