"""One run: its directory, its process, and what it publishes."""
