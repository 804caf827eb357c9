"""The verifiable problems: reading, selecting, corrupting and prompting."""
