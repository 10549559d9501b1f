"""Compare features, or solve for a head in closed form, without inner steps. Start with `protonet.py`."""
