"""Language and theme, who one is here, keys and their usage, and what the server runs with."""
