"""The data of a recipe: opened, prepared, cut into batches."""
