"""Checkpoint formats of the models' authors, converted to transformers' own models."""
