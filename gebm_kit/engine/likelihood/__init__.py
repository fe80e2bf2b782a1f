"""Log-partition and log-densities of a model."""
