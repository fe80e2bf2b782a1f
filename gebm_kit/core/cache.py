"""Folders for results kept between runs: they take time to compute, but can always be computed again."""

from __future__ import annotations

import os
from pathlib import Path

from gebm_kit.core.paths import user_path


def cache_directory() -> Path:
    """Return ``$GEBM_KIT_CACHE``, else ``$XDG_CACHE_HOME/gebm-kit``, else ``~/.cache/gebm-kit``; it need not exist."""
    if os.environ.get("GEBM_KIT_CACHE"):
        return user_path(os.environ["GEBM_KIT_CACHE"], what="GEBM_KIT_CACHE")
    return user_path(os.environ.get("XDG_CACHE_HOME") or "~/.cache", what="the cache directory") / "gebm-kit"


def data_cache_directory() -> Path:
    """Return the folder of prepared data: ``$GEBM_KIT_DATA_CACHE``, else the folder ``data`` in `cache_directory`."""
    if os.environ.get("GEBM_KIT_DATA_CACHE"):
        return user_path(os.environ["GEBM_KIT_DATA_CACHE"], what="GEBM_KIT_DATA_CACHE")
    return cache_directory() / "data"
