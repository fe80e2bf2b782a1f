"""What every test runs under: one thread, no plugins of this machine, a cache of its own."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def _environment(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Tests, and the programs that they start, see neither this machine's plugins nor its cache."""
    for name in [name for name in os.environ if name.startswith("GEBM_KIT_")]:
        del os.environ[name]
    os.environ["GEBM_KIT_LOAD_PLUGINS"] = ""
    base = tmp_path_factory.getbasetemp()
    shared: Path = base.parent if os.environ.get("PYTEST_XDIST_WORKER") else base
    os.environ["GEBM_KIT_CACHE"] = str(shared / "gebm-kit-cache")
    os.environ["OMP_NUM_THREADS"] = "1"
    os.environ.pop("FORCE_COLOR", None)
