"""Training a recipe: the loop, the trainer and its phases, checkpointed state, ranks that share a batch."""
