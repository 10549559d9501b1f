"""Adapt by gradient steps from meta-learned weights: MAML and what came of it. Start with `maml.py`."""
