"""Classification metrics, baselines and intervals that respect groups."""
