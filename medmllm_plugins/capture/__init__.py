"""Features of a model's stages: taken while it answers, pooled for each document, kept on disk."""
