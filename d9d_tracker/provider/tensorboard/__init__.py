"""Backend that writes TensorBoard event files."""
