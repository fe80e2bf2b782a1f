"""The process and its machine: devices, ranks, signals, locks."""
