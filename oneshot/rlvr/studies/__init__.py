"""Arms over seeds: the ablations and phenomena of the paper."""
