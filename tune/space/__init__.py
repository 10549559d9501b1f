"""Describe a search space: one distribution per parameter, and the conditions between them."""
