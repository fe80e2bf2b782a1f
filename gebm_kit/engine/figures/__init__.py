"""The figures that the kit draws."""
