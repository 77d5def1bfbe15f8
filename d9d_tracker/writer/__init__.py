"""A backend in a process of its own: ``accumulator.writer = "process"``."""
