"""The losses study: every loss on the same problems; see ``python -m benchmarks.losses --help``."""
