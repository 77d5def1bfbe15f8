"""This library in the frameworks that own the training loop: each file imports its framework, and no other does."""
