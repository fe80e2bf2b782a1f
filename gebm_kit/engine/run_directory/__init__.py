"""A run on disk: made, read, checkpointed, compared."""
