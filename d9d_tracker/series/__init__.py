"""What a series is, how its values combine, and which slot of a run it has."""
