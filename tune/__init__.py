"""Search over configurations: spaces, searchers, schedulers, and studies that run on Ray Tune.

Reading order: `space/` (what one parameter may be; all of them, and which depend on which), `history/` (trials and
their results; the journal that a crash leaves; Pareto fronts), `searchers/` (what to try next), `schedulers/` (which
trials continue), `study` (all of it together), `transfer/` (what a new study learns from prior ones;
`searchers/warm_start` uses it).

    (space, history, number, seed) -> configuration        a searcher
    (history, number)              -> continue | stop      a scheduler

Both are pure functions, so a study that is rebuilt from its journal continues as if it had not stopped.

From there to `metatrain search`: `settings` and `config/` (a search as it is written), `search_dir` (its files),
`execution/` (one trial from rung to rung; the coordinator, which Ray Tune asks what to run; resources), `monitor`
(progress while it runs), `runner` (one search from start to end), `report/` (the page about it).
"""
