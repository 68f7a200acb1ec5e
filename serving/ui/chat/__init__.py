"""The Chat tab: conversations with one model at a time, kept on the server."""
