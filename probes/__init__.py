"""Probes: what each layer of a model knows of the label. Reads the feature store and knows no host; only the planted faults know models."""
