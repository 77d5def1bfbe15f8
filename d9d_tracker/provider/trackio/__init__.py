"""Trackio as a backend."""
