"""Sweeps: many points, that is configs with seeds, in groups that share a compiled function."""
