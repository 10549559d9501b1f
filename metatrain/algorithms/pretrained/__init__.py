"""Train a classifier of all training classes, then adapt its features to a task: the baselines to beat."""
