"""A small language model of the project's own making, for the demo, the tests and first steps."""

from pathlib import Path

MODEL_FOLDER = Path(__file__).resolve().parent / "model"
