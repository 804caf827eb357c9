"""What a response earns, and the graders that decide."""
