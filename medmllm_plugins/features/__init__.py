"""Features of a model's stages: forward hooks, pooling, the feature store and control features."""
