"""What the user has: preference pairs and their files."""
