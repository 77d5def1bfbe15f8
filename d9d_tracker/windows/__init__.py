"""The states of a window once they are on the host: how they merge, over steps and ranks, and travel."""
