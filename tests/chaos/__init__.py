"""Kill, stop and disconnect everything that a run depends on, by a seed, and check that its parameters keep their bits.

`python -m tests.chaos --seed 0 --kills 30` (which is `make chaos`) prints every event as it happens, and a verdict for
each scenario. Reading order: `scenarios.py` (what is done and what must hold), `monkey.py` (who does it), `drivers.py`.
"""
