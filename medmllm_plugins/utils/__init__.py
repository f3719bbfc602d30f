"""Helpers that know nothing of medical images or models: files, locks, progress, redaction, bounded YAML."""
