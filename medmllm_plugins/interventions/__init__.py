"""Interventions on a model, each undone when its context ends."""
