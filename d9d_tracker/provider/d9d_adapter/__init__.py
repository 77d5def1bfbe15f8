"""Backend that hands everything to a tracker of d9d."""
