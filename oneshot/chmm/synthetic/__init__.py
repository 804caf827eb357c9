"""Generated corpora whose sources are reliable on known words only."""
