"""Drawing from a model: warm-up, running kernels and populations, diagnostics, draws in memory and on disk."""
