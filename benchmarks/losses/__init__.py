"""Every loss on the same problems: see ``python -m benchmarks.losses --help``."""
