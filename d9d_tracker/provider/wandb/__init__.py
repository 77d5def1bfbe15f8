"""Backend that writes to Weights & Biases."""
