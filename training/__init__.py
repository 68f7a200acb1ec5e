"""Training: from a data file to a published adapter, one run a process."""
