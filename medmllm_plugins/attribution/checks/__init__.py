"""Checks that tell whether an attribution map can be trusted."""
