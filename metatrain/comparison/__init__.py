"""Compare runs on the same tasks: `compare` scores them, `summary` draws conclusions, `metatrain.report` shows them."""
