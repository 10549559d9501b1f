"""Where to run: the executor on Ray. Reading order: `actor.py`, `executor.py`, `connection.py`."""
