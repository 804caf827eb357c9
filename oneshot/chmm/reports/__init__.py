"""What a run reports: plots, tables, and what each source is worth."""
