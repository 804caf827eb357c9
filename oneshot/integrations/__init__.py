"""Fronts with the interface of other libraries; each needs only what its own users have."""
