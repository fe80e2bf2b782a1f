"""Runs on disk: creating, reading, checkpointing and comparing them."""
