"""Act in environments and estimate policy gradients: pure functions for ONE task, over its episodes E and steps T.

Reading order: `policies.py`, `rollout.py`, `advantages.py`, `surrogates.py`, `trust_region.py`.
"""
