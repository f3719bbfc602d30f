"""Architectures: the names of their stages and the layout of their tokens, one file each."""
