"""Conformance checks that plugin authors run on their own components."""
