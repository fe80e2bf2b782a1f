"""The command line: the only part of the kit that prints. Heavy imports happen inside the commands."""
