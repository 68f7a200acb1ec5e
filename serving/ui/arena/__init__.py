"""The Arena tab: blind votes between two answers, and what they say of the models."""
