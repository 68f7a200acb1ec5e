"""What the browser faces of all floors share: words in two languages, a tab, and who is looking."""
