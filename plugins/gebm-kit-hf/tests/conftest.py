"""Environment of these tests: one thread, no other plugin, no network, separate caches."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from gebm_kit.core.plugins import installed

torch.set_num_threads(1)

# set here, not in a fixture: the library reads them when it is imported
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HOME"] = tempfile.mkdtemp(prefix="gebm-kit-hf-")


@pytest.fixture(autouse=True)
def _this_plugin_alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    monkeypatch.setenv("GEBM_KIT_LOAD_PLUGINS", "gebm-kit-hf")
    monkeypatch.setenv("GEBM_KIT_STRICT_PLUGINS", "1")
    monkeypatch.setenv("GEBM_KIT_DATA_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    installed.cache_clear()
    yield
    monkeypatch.undo()
    installed.cache_clear()
