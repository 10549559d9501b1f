"""Run on Ray: the executor that distributes shards over worker actors, and jobs submitted to a remote cluster.

Reading order: `actor.py` (one worker), `work_queue.py` (the shards that are left), `worker_pool.py` (the workers),
`dispatcher.py` (gives shards to workers), `executor.py` (adds up their results); `events.py`, `nodes.py`,
`ray_errors.py` and `connection.py` serve these. `jobs/` submits commands to a remote cluster and needs no Ray on this
machine.
"""
