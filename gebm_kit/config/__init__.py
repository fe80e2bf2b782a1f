"""Recipes: reading a file, checking it, and building the objects it names."""
