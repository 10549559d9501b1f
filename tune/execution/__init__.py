"""Run trials on Ray Tune: place them, hand out configurations, take their results."""
