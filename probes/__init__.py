"""Probes: what each layer of a model knows of the label. Reads the feature store; knows no model and no host."""
