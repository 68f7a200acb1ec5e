"""Runs that wait for each other: the queue, and fine-tuning as others ask for it."""
