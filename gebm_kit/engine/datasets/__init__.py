"""The data of a recipe: opening, preparing and batching them."""
