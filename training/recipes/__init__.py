"""Recipes written for other trainers, run here: one table a trainer, and what reads and reports them."""
