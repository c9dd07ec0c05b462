"""Algorithm 1 and the other ways to a rejected response."""
