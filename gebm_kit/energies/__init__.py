"""Energies: scalar functions of a data point."""
