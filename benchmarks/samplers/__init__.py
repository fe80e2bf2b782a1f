"""The kit's samplers against blackjax and numpyro: see ``python -m benchmarks.samplers --help``."""
