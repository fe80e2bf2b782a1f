"""The samplers study: the kit against blackjax and numpyro; see ``python -m benchmarks.samplers --help``."""
