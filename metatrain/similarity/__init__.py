"""Measure how far tasks are apart, and sources of tasks, by what a trained network needs to solve them."""
