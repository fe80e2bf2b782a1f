"""The version of the kit, in a place that every module below the package's face may import."""

from __future__ import annotations

__version__ = "0.1.0"
