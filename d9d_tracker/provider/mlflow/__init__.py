"""Backend that writes to an MLflow server or store."""
