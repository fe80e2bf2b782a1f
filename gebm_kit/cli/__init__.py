"""The command line; the only part of the kit that prints."""
