"""The ground floor: what serving and training must agree on byte for byte.

The adapter's manifest and weights, the store and registry of versions, the base model and the chat
rendering live here. This package imports neither `serving` nor `training`."""
