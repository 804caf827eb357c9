"""How a PolyModel sits around a model: injection, routing of a pass, delegation, merging."""
