"""What to try: searches over configurations.

Reading order: `domains` (what one parameter may be), `space` (all of them, and which depend on which), `history` (what
was tried and seen), `objectives` and `costs` (what is better, where more than the metric counts), `searchers/` (what to
try next), `rungs` and `population` (who goes on), `journal` (what a crash leaves), `search` (all of it together),
`likeness` and `experience` (whose earlier searches tell a new one something, and what; `searchers/warm` listens).

    (space, history, number, seed) -> configuration        a searcher
    (history, number)              -> continue | stop      a schedule

Both are pure functions, so a search that is rebuilt from its journal goes on as if it had not stopped.

From there to `metatrain search`: `document`, `methods` (a search as it is written), `folder` (what it keeps), `trial`
(one run, from rung to rung), `desk` (who is begun, what became of whom), `resources` (whether there is room), `session`
(Ray Tune asks, the desk answers), `chronicle` (what is told meanwhile), `driver` (all of it, once), `report/`,
`importance` and `plots` (what came of it).
"""
