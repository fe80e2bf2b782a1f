"""Pictures of classes: a row of images for each class, and bars for each class that has values."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from gebm_kit.engine.figures import class_figures
from gebm_kit.engine.figures.class_figures import MOST_CLASSES, class_bars, class_grid


def constant(labels: Tensor, num_classes: int) -> Tensor:
    """Images whose grey is their class."""
    grey = labels.float() / num_classes
    return grey[:, None, None, None].expand(len(labels), 1, 4, 4)


@pytest.mark.parametrize("num_classes", [3, 10, 50])
def test_a_row_has_images_of_its_class_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, num_classes: int) -> None:
    kept: list[Any] = []
    whole = class_figures.mosaic
    monkeypatch.setattr(class_figures, "mosaic", lambda images, limits: kept.append(images) or whole(images, limits))
    labels = torch.arange(400) % num_classes
    place = class_grid(
        tmp_path / "grid.png", {"data": constant(labels, num_classes)}, {"data": labels}, num_classes, (0.0, 1.0)
    )
    with Image.open(place) as image:
        assert image.format == "PNG"
    rows = kept[0].reshape(min(num_classes, MOST_CLASSES), 8, -1)
    shown = [place * num_classes // len(rows) for place in range(len(rows))]
    for label, row in zip(shown, rows, strict=True):
        count = min(8, int((labels == label).sum()))
        np.testing.assert_allclose(row[:count], label / num_classes)
        np.testing.assert_allclose(row[count:], 1.0)


def test_a_class_without_images_and_colours(tmp_path: Path) -> None:
    x = torch.randn(5, 3, 4, 4)
    labels = torch.tensor([0, 0, 2, 2, 2])
    assert class_grid(tmp_path / "a.png", {"data": x, "base": x}, {"data": labels, "base": labels}, 4, None).is_file()


def classes(**changes: Any) -> dict[str, Any]:
    cell = {"value": 1.0, "low": 0.5, "high": 1.5, "n": 3}
    one = {"metrics": {"base": {"mmd": cell}, "gebm": {"mmd": cell, "mmd.train": cell}}, "accuracy": 0.5}
    return {"0": {**one, **changes}, "1": one, "2": {"metrics": {}, "accuracy": None}}


@pytest.mark.parametrize("law", ["bayes", "energy-part", None])
def test_bars(tmp_path: Path, law: str | None) -> None:
    place = class_bars(tmp_path / "bars.png", classes(), law)
    assert place is not None
    with Image.open(place) as image:
        assert image.format == "PNG"


def test_values_without_intervals(tmp_path: Path) -> None:
    cell = {"value": 2.0, "low": None, "high": None, "n": 1}
    found = classes(metrics={"base": {"mmd": {**cell, "value": None}}, "gebm": {"mmd": cell}})
    assert class_bars(tmp_path / "bars.png", found) is not None


def test_without_values_there_is_no_picture(tmp_path: Path) -> None:
    assert class_bars(tmp_path / "bars.png", {"0": {"metrics": {}, "accuracy": None}}) is None
    assert not list(tmp_path.iterdir())


def test_names_with_dollars_are_drawn_as_they_are(tmp_path: Path) -> None:
    images, labels = {"data": torch.zeros(4, 1, 4, 4)}, {"data": torch.tensor([0, 1, 0, 1])}
    path = class_grid(tmp_path / "samples.png", images, labels, 2, (0.0, 1.0), names=("$\\under $5", "$_$"))
    assert path.exists()


def test_bars_stand_over_the_names_of_the_classes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[Any] = []
    monkeypatch.setattr(class_figures, "save_figure", lambda figure, path: kept.append(figure) or path)
    class_bars(
        tmp_path / "a.png", {str(k): {"metrics": {}, "accuracy": 0.5, "name": name} for k, name in enumerate("rw")}
    )
    class_bars(tmp_path / "b.png", {str(k): {"metrics": {}, "accuracy": 0.5} for k in range(2)})
    assert [[tick.get_text() for tick in figure.axes[-1].get_xticklabels()] for figure in kept] == [
        ["r", "w"],
        ["0", "1"],
    ]
