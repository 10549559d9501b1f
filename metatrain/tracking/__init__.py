"""Record runs: JSON lines, MLflow, the terminal."""
