"""Reports: one HTML page about a run, or about several, that opens from disk without network."""
