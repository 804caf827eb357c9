"""`oneshot poly compositional`: adapters on string tasks composed of shared skills."""
