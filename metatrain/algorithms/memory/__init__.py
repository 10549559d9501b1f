"""Learners with a memory: read a task example by example, predict each, and are told its label afterwards."""
