"""Learn policies that adapt to a task, which is an environment. Start with `adaptation.py`."""
