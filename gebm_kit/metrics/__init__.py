"""Metrics: how good a set of draws, or a model, is."""
