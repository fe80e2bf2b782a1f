"""The version of the kit, where every module of the package may import it."""

from __future__ import annotations

__version__ = "0.1.0"
