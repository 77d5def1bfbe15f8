"""Backend that writes to an Aim repository."""
