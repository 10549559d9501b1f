"""Change one setting at a time, train each with the same seeds, and compare with the unchanged: an ablation."""
