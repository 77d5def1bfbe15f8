"""Reading what runs in JSON files hold."""

from .stored_run import End, Histograms, Scalars, Series, StoredRun, read

__all__ = ["End", "Histograms", "Scalars", "Series", "StoredRun", "read"]
