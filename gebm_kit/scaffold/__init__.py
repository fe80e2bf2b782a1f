"""A new plugin package of one component, written by ``gebm-kit plugins new``."""
