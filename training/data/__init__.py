"""Data files: what is in them, whether it is fit to learn from, and rows as tokens."""
