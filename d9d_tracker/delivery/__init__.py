"""Handing records to backends, whatever they do: knows the contract of a backend and records, and nothing else."""
