"""The instrument panel: where the time of a step goes, what it gets done, and what it takes."""
