"""The story of one job, read top to bottom."""
