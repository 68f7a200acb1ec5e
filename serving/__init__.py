"""Serving: the engine that answers for many adapters in one batch, and the faces in front of it."""
