"""One small, working component of each kind, from which new plugin packages are written and docs/interfaces.md is made.

In a new package `Example` is replaced by its class, and ``"example"`` by its component's name. Each module imports
`gebm_kit.core` alone.
"""
