"""Where to run: the executor on Ray.

Reading order: `actor.py` (a worker), `ledger.py` (what is to be done), `crew.py` (who is there), `campaign.py` (the two
meet), `executor.py` (what comes back is added up); `events.py`, `nodes.py` and `connection.py` beside them. Apart from
these, `dashboard.py`, `parcel.py` and `jobs.py`: how a command gets onto a cluster elsewhere, without Ray here.
"""
