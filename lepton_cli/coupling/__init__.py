"""Which channels must go together, and taking them out."""
