"""Tilting a generator by a scorer: draws at each beta, what they cost, and what other ways give for the same cost."""
