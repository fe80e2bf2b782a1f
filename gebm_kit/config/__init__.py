"""A recipe file becomes checked, built objects."""
