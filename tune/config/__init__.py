"""Read the configuration of a search: its method, its settings, its initial trials."""
