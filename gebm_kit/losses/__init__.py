"""Losses: what the energy and the base minimise."""
