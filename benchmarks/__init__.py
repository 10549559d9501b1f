"""Measure speed, memory and scaling, next to libraries for the same task: `python -m benchmarks`."""
