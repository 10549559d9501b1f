"""Learn from earlier studies: how similar their tasks are, and what they observed."""
