"""Meta-train: the outer loop, the worker that computes shards, the in-process executor."""
