"""The Adapters tab: what there is, where it sits, and what may be done with it."""
