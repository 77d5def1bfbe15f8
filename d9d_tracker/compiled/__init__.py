"""What code that is traced has in place of the run, and where it may log."""
