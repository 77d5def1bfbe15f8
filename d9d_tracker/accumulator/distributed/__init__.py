"""Merging the values of many ranks into one run."""
