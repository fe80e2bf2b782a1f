"""TensorBoard: which calls its writer gets, and, where it is installed, what its reader finds."""

from __future__ import annotations

import math
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from gebm_kit.core.errors import PluginError
from gebm_kit.loggers.tensorboard import TensorBoard


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """Calls of a fake writer that stands in for TensorBoard's."""
    seen: list[tuple[Any, ...]] = []

    class FakeWriter:
        def __init__(self, directory: str, *, purge_step: int) -> None:
            seen.append(("init", directory, purge_step))

        def __getattr__(self, name: str) -> Any:
            return lambda *values, **options: seen.append((name, *values, *options.values()))

    module = types.ModuleType("torch.utils.tensorboard")
    module.SummaryWriter = FakeWriter  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    return seen


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    Image.fromarray(np.full((4, 6), 255, dtype=np.uint8)).save(tmp_path / "samples.png")
    return tmp_path / "samples.png"


def test_names_become_groups_and_every_row_is_flushed(
    calls: list[tuple[Any, ...]], tmp_path: Path, picture: Path
) -> None:
    logger = TensorBoard(run_directory=tmp_path)
    logger.log_config({"base": {"name": "mlp"}})
    logger.log(10, {"kale": 0.5, "eval.gebm.mmd": 0.1})
    logger.log_image(10, "samples", picture)
    logger.close()
    assert calls[0] == ("init", str(tmp_path / "tensorboard"), 1)
    assert calls[1][:2] == ("add_text", "recipe")
    assert ("add_scalar", "train/kale", 0.5, 10) in calls
    assert ("add_scalar", "eval/gebm/mmd", 0.1, 10) in calls
    (image,) = [call for call in calls if call[0] == "add_image"]
    assert (image[1], image[2].shape, image[3:]) == ("figures/samples", (4, 6, 3), (10, "HWC"))
    assert [call[0] for call in calls].count("flush") == 3
    assert calls[-1] == ("close",)


def test_pictures_can_be_left_out_and_a_resumed_run_purges_what_comes_again(
    calls: list[tuple[Any, ...]], tmp_path: Path, picture: Path
) -> None:
    logger = TensorBoard(images=False, run_directory=tmp_path, start_step=500)
    logger.log_config({})
    logger.log_image(10, "samples", picture)
    assert calls == [("init", str(tmp_path / "tensorboard"), 501)]


def test_a_table_is_text_whose_cells_are_no_markup(calls: list[tuple[Any, ...]], tmp_path: Path) -> None:
    logger = TensorBoard(run_directory=tmp_path)
    logger.log_table(3, "evaluation", ["value", "gebm", "low"], [["<b>|mmd", 0.123456789, None]])
    expected = "| value | gebm | low |\n| --- | --- | --- |\n| &lt;b&gt;\\|mmd | 0.123457 |  |"
    assert calls[1:] == [("add_text", "tables/evaluation", expected, 3), ("flush",)]


def test_without_the_package_the_message_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    for start in (TensorBoard.check, lambda: TensorBoard(run_directory=tmp_path)):
        with pytest.raises(PluginError, match="needs the package tensorboard") as caught:
            start()
        assert "pip install 'gebm-kit[tensorboard]'" in caught.value.hint
    assert not list(tmp_path.iterdir())


def test_its_reader_finds_every_step_once_after_a_kill(tmp_path: Path, picture: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    killed = TensorBoard(run_directory=tmp_path)  # never closed: flushed rows must be there
    killed.log_config({"base": {"name": "mlp"}})
    for step in (1, 10, 20, 30):
        killed.log(step, {"kale": -1.0})
    resumed = TensorBoard(run_directory=tmp_path, start_step=20)
    resumed.log_config({"base": {"name": "mlp"}})
    for step in (30, 40):
        resumed.log(step, {"kale": float(step), "energy_loss": math.nan})
    resumed.log_image(40, "samples", picture)
    resumed.close()
    found = EventAccumulator(str(tmp_path / "tensorboard"))
    found.Reload()
    assert [(e.step, e.value) for e in found.Scalars("train/kale")] == [(1, -1), (10, -1), (20, -1), (30, 30), (40, 40)]
    assert math.isnan(found.Scalars("train/energy_loss")[0].value)
    assert [(e.step, e.width, e.height) for e in found.Images("figures/samples")] == [(40, 6, 4)]
    assert "recipe/text_summary" in found.Tags()["tensors"]
