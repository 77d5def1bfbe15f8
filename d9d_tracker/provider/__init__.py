"""The backends: each knows the contract, the records and its own configuration, and nothing of the accumulator."""
