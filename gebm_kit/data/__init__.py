"""Datasets: toys with known answers, shipped real data, and readers of common formats."""
