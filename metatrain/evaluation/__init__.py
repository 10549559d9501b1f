"""Score learners on held-out tasks."""
