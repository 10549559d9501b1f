"""How fast, how large, how far it scales: measured, beside the libraries that do the same. `python -m benchmarks`."""
