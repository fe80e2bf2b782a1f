"""Penalties: regularisers of the energy."""
