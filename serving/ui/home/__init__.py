"""The first page: what this is, and where to begin."""
