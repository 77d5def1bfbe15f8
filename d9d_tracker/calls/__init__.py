"""What a loop calls, from arguments to what is written into the bank."""
