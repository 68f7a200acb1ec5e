"""The training endpoints."""
