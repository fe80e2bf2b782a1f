"""Bases: maps from the latent space to the data space."""
