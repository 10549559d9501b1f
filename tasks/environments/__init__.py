"""Define tasks that are environments: Markov decision processes in which a policy acts. Start with `protocol.py`."""
