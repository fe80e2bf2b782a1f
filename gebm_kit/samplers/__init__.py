"""Latent samplers: pure kernels on a small state."""
