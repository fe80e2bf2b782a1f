"""The vocabulary of the kit: interfaces, the model, estimators, and the registry. Imports no sibling package."""
