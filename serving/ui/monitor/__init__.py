"""The Monitor tab: what the server does now, and has done in the last quarter of an hour."""
