"""Probes: what each layer of a model knows of the label.

Reads the feature store and knows no host. Models are known to the planted faults and the selfcheck alone.
"""
