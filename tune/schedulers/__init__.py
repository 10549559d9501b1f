"""Decide which trials continue: asynchronous successive halving and population-based training."""
