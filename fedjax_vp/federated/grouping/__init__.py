"""Groupings of clients: by loss, by similarity of updates, and baselines that see data."""
