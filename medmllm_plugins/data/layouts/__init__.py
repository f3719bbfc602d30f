"""Layouts: one file for each published arrangement of files, and one for a user's own images."""
