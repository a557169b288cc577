"""Scorers. Every benchmark has two over the same outputs: `strict` (primary, no known exploit) and `paper`."""
