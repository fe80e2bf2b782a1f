"""The tests that come with a new plugin package, one module for each kind of component."""
