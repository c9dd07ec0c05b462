"""Log-probabilities of many responses to one prompt, packed into one row."""
