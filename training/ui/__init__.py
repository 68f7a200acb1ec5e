"""The Train tab of the browser face."""
