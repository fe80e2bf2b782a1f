"""Scoring a model: metrics, tables, and traces of quality along the chains."""
