"""What to try: searches over configurations, on Ray Tune."""
