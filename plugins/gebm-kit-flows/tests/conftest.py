"""Settings of these tests: one thread, and no plugin except this one."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from gebm_kit.core.plugins import installed

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _this_plugin_alone(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("GEBM_KIT_LOAD_PLUGINS", "gebm-kit-flows")
    monkeypatch.setenv("GEBM_KIT_STRICT_PLUGINS", "1")
    installed.cache_clear()
    yield
    monkeypatch.undo()
    installed.cache_clear()
