"""The backends: each knows the contract, the records and its own configuration, and nothing of the accumulator.

What all have in common: two writers of one run, on one machine at least, are refused. A run that is to be re-attached
to and is gone is started anew, with a warning. Where series have no tags, the key of one is its name followed by its
context, as ``loss/rank=0/stage=train``; NaN and infinite elements of a histogram are, where there are any, the numbers
``<name>/nan`` and ``<name>/inf``. A flush that fails keeps what it could not store for the next one.
"""
