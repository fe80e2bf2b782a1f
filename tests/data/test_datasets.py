"""Tests that every registered dataset must pass."""

from __future__ import annotations

import gzip
import inspect
import struct
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from gebm_kit.core.components import BUILTIN, parameters
from gebm_kit.core.errors import DataError, UsageError
from gebm_kit.core.interfaces import Dataset, HasDensity, HasLabels, HasModes
from gebm_kit.core.plugins import installed
from gebm_kit.data.arrays import Arrays
from gebm_kit.data.digits import Digits
from gebm_kit.data.idx import Idx
from gebm_kit.data.image_folder import ImageFolder
from gebm_kit.data.tabular import Tabular

PARTS = ("train", "valid", "test")
NAMES = [record.component.name for record in installed().registry.of_kind("dataset") if record.distribution == BUILTIN]


def _arrays(folder: Path) -> Arrays:
    rng = np.random.default_rng(0)
    np.savez(folder / "points.npz", x=rng.normal(size=(60, 3)), y=rng.integers(0, 4, 60))
    return Arrays("points.npz", labels="y", directory=folder)


def write_idx(path: Path, array: np.ndarray) -> None:
    header = bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
    content = header + array.astype(np.uint8).tobytes()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


def _idx(folder: Path) -> Idx:
    rng = np.random.default_rng(0)
    for part, num in (("train", 40), ("t10k", 12)):
        write_idx(folder / f"{part}-images-idx3-ubyte.gz", rng.integers(0, 256, (num, 6, 5)))
        write_idx(folder / f"{part}-labels-idx1-ubyte", np.arange(num) % 3)
    return Idx(".", directory=folder)


def _image_folder(folder: Path) -> ImageFolder:
    rng = np.random.default_rng(0)
    for index in range(24):
        inner = folder / ("cats" if index % 2 else "dogs") / f"batch{index % 3}"
        inner.mkdir(parents=True, exist_ok=True)
        shape = (10 + index % 4, 12 - index % 3, 3)
        Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8)).save(inner / f"{index}.png")
    return ImageFolder(".", size=8, directory=folder)


def _tabular(folder: Path) -> Tabular:
    np.save(folder / "table.npy", np.random.default_rng(0).normal(size=(60, 3)))
    return Tabular("table.npy", directory=folder)


NEED_FILES: dict[str, Callable[[Path], Dataset]] = {
    "arrays": _arrays,
    "idx": _idx,
    "image-folder": _image_folder,
    "tabular": _tabular,
}


def make(name: str, folder: Path, formats: Any) -> Dataset:
    """Make a small dataset of that name; if it reads files, they are in ``folder``."""
    if name in NEED_FILES:
        return NEED_FILES[name](folder)
    target = installed().registry.get("dataset", name).load()
    takes = parameters(target)
    if hasattr(formats, name):
        path = folder / name
        small = {"size": 8} if "size" in takes else {}
        return target(str(path if path.exists() else getattr(formats, name)(path)), **small)
    sizes = {key: 300 for key in ("num_train", "num_valid", "num_test") if key in takes}
    return target(**sizes)


@pytest.fixture(params=NAMES)
def dataset(request: pytest.FixtureRequest, tmp_path: Path, formats: Any) -> Dataset:
    return make(request.param, tmp_path, formats)


def everything(dataset: Dataset, part: str) -> torch.Tensor:
    return dataset.split(part).first(10**6)


def test_parts_have_the_stated_shape_type_and_range(dataset: Dataset) -> None:
    for part in PARTS:
        split = dataset.split(part)
        rows = everything(dataset, part)
        assert len(split) > 0
        assert rows.shape == (len(split), *dataset.data_shape)
        assert rows.dtype == torch.float32
        assert torch.isfinite(rows).all()
        if dataset.value_range is not None:
            low, high = dataset.value_range
            assert low <= float(rows.min())
            assert float(rows.max()) <= high


def test_batches_are_rows_of_the_part(dataset: Dataset) -> None:
    split = dataset.split("train")
    index = torch.tensor([len(split) - 1, 0, 2, 2])
    assert torch.equal(split.batch(index), everything(dataset, "train")[index])
    assert torch.equal(split.first(3), everything(dataset, "train")[:3])


def test_a_batch_is_the_callers_own(dataset: Dataset) -> None:
    split = dataset.split("train")
    before = split.batch(torch.tensor([0])).clone()
    split.batch(torch.tensor([0])).fill_(77.0)
    assert torch.equal(split.batch(torch.tensor([0])), before)


def test_parts_share_no_row(dataset: Dataset) -> None:
    seen = [{row.numpy().tobytes() for row in everything(dataset, part)} for part in PARTS]
    assert not seen[0] & seen[1]
    assert not seen[0] & seen[2]
    assert not seen[1] & seen[2]


@pytest.mark.parametrize("name", NAMES)
def test_the_same_arguments_give_the_same_data(name: str, tmp_path: Path, formats: Any) -> None:
    first = make(name, tmp_path, formats)
    torch.manual_seed(99)  # the default generator must play no part
    torch.randn(5)
    second = make(name, tmp_path, formats)
    for part in PARTS:
        assert torch.equal(everything(first, part), everything(second, part))


def test_loading_leaves_the_default_generator_alone(tmp_path: Path, formats: Any) -> None:
    state = torch.random.get_rng_state()
    for name in NAMES:
        folder = tmp_path / name
        folder.mkdir()
        make(name, folder, formats).split("train").first(5)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_labels_fit_the_rows(dataset: Dataset) -> None:
    if not isinstance(dataset, HasLabels):
        pytest.skip("no labels")
    for part in PARTS:
        labels = dataset.labels(part)
        assert labels.shape == (len(dataset.split(part)),)
        assert labels.dtype == torch.int64
        assert int(labels.min()) >= 0
        assert int(labels.max()) < dataset.num_classes


def test_modes_lie_in_the_data_space(dataset: Dataset) -> None:
    if not isinstance(dataset, HasModes):
        pytest.skip("no known modes")
    assert tuple(dataset.mode_centres.shape[1:]) == tuple(dataset.data_shape)
    distance = torch.cdist(everything(dataset, "test"), dataset.mode_centres).min(1).values
    assert float((distance < 4 * dataset.mode_std).float().mean()) > 0.98


def test_the_density_integrates_to_one(dataset: Dataset) -> None:
    if not isinstance(dataset, HasDensity):
        pytest.skip("no known density")
    cells, edge = 480, 6.0
    line = (torch.arange(cells, dtype=torch.float64) + 0.5) * (2 * edge / cells) - edge
    mass = sum(float(dataset.log_prob(torch.cartesian_prod(row, line)).exp().sum()) for row in line.split(60))
    assert mass * (2 * edge / cells) ** 2 == pytest.approx(1.0, abs=2e-3)


def test_parameters_with_a_range_refuse_what_is_outside(tmp_path: Path) -> None:
    for name in NAMES:
        target = installed().registry.get("dataset", name).load()
        for parameter in parameters(target).values():
            if parameter.range is None or parameter.range.low is None:
                continue
            arguments = {p.name: "." for p in parameters(target).values() if p.default is inspect.Parameter.empty}
            with pytest.raises(UsageError, match=parameter.name):
                target(**arguments, **{parameter.name: parameter.range.low - 1})


class TestDigits:
    def test_split_is_stratified_and_complete(self) -> None:
        digits = Digits()
        assert [len(digits.split(part)) for part in PARTS] == [1199, 199, 399]
        for part, share in zip(PARTS, (6 / 9, 1 / 9, 2 / 9), strict=True):
            counts = torch.bincount(digits.labels(part), minlength=10)
            assert float((counts / len(digits.split(part)) - 0.1).abs().max()) < 0.01
            assert abs(len(digits.split(part)) / 1797 - share) < 0.002

    def test_pixels_are_the_seventeen_grey_levels(self) -> None:
        values = Digits().split("train").first(2000).unique()
        assert torch.equal(values, torch.arange(17) / 8 - 1)

    def test_the_licence_is_shipped_beside_the_data(self) -> None:
        note = (resources.files("gebm_kit.data") / "files" / "digits.LICENSE.txt").read_text()
        assert "CC BY 4.0" in note
        assert "Alpaydin" in note

    def test_a_damaged_file_is_a_clear_error(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def damaged(*args: object, **kwargs: object) -> None:
            raise ValueError("bad zip")

        monkeypatch.setattr(np, "load", damaged)
        with pytest.raises(DataError, match="digits shipped with gebm-kit"):
            Digits()
