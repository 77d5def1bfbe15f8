"""Histograms of a whole model: what ``run.watch`` hooks into, and how it names and reads what it finds."""
