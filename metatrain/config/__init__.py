"""Load, resolve and check configurations."""
