"""Everything that may die or fail does, on a seed's word, while runs go on; then it is looked whether a bit changed.

`python -m tests.chaos --seed 0 --kills 30` (which is `make chaos`) prints every event as it happens, and a verdict for
each scenario. Reading order: `scenarios.py` (what is done and what must hold), `monkey.py` (who does it), `drivers.py`.
"""
