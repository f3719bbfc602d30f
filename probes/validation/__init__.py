"""Planted faults with known truth, and the self-check of the diagnosis."""
