"""Reading what runs in JSON files hold."""

from .stored_run import Histograms, Scalars, Series, StoredRun, read

__all__ = ["Histograms", "Scalars", "Series", "StoredRun", "read"]
