"""Arrays with two readings: each is named and refused, and a parameter chooses one; the line says which."""

from __future__ import annotations

import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from gebm_kit.core.errors import DataError, UsageError
from gebm_kit.data.arrays import Arrays

PARTS = ("train", "valid", "test")
RNG = np.random.default_rng(0)
LEVELS = RNG.integers(0, 256, (30, 6, 6))
LEVELS[0, 0, :2] = 0, 255
SCALED = torch.from_numpy(LEVELS).float() / 127.5 - 1


def arrays(rows: np.ndarray, folder: Path, **arguments: Any) -> Arrays:
    np.save(folder / "a.npy", rows)
    return Arrays("a.npy", directory=folder, **arguments)


def content(data: Arrays) -> set[bytes]:
    return {row.numpy().tobytes() for part in PARTS for row in data.split(part).first(999)}


def expected(rows: torch.Tensor) -> set[bytes]:
    return {row.numpy().tobytes() for row in rows}


@pytest.mark.parametrize("kind", ["i2", "i4", "i8", "u2", "u4", "f2", "f4", "f8"])
def test_grey_levels_in_other_types_have_two_readings(kind: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="whole numbers from 0 to 255, which can be read in two ways") as caught:
        arrays(LEVELS.astype(kind), tmp_path)
    assert "(data.pixels=byte)" in str(caught.value)
    assert "(data.pixels=keep)" in str(caught.value)
    scaled = arrays(LEVELS.astype(kind), tmp_path, pixels="byte")
    assert content(scaled) == expected(SCALED[:, None])
    assert scaled.value_range == (-1.0, 1.0)
    assert scaled.split("train").rows.dtype == torch.uint8
    kept = arrays(LEVELS.astype(kind), tmp_path, pixels="keep")
    assert content(kept) == expected(torch.from_numpy(LEVELS).float()[:, None])
    assert kept.value_range is None


def test_bytes_may_be_kept_and_points_scaled(tmp_path: Path) -> None:
    kept = arrays(LEVELS.astype("u1"), tmp_path, pixels="keep")
    assert content(kept) == expected(torch.from_numpy(LEVELS).float()[:, None])
    flat = arrays(LEVELS.reshape(30, 36).astype("u1"), tmp_path, pixels="byte")
    assert content(flat) == expected(SCALED.reshape(30, 36))


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        (LEVELS * 0.99 + 0.3, "fractions from 0.3 to 252.75"),
        (LEVELS * 1.05 - 6.5, "fractions from -6.5 to 261.25"),  # a filter that overshoots
        (LEVELS * 257, "grey levels 0..65535, scaled to [-1, 1] (data.pixels=uint16)"),
        (LEVELS // 16, "whole numbers from 0 to 15"),
    ],
)
def test_other_numbers_that_look_like_grey_levels(rows: np.ndarray, words: str, tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        arrays(rows, tmp_path)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        (LEVELS / 255, "float64 in [0, 1] -> float32 in [0, 1]"),
        (LEVELS / 127.5 - 1, "float64 in [-1, 1] -> float32 in [-1, 1]"),
        (LEVELS > 100, "in [0, 1] -> float32 in [0, 1]"),
        (LEVELS * 0.03, "-> float32 in [0, 7.65]"),
        (LEVELS - 128, "in [-128, 127]"),
    ],
)
def test_numbers_with_one_reading_are_kept_and_said(rows: np.ndarray, words: str, tmp_path: Path) -> None:
    data = arrays(rows, tmp_path)
    assert content(data) == expected(torch.from_numpy(rows).float()[:, None])
    assert words in data.describe_reading()


def test_other_ranges_are_scaled_on_request(tmp_path: Path) -> None:
    for rows, pixels in ((LEVELS / 255, "unit"), (LEVELS * 257, "uint16"), (LEVELS * 0.99, "byte")):
        data = arrays(rows, tmp_path, pixels=pixels)
        top = {"unit": 1, "uint16": 65535, "byte": 255}[pixels]
        together = torch.cat([data.split(part).first(999) for part in PARTS])
        assert together.aminmax() == (pytest.approx(rows.min() / top * 2 - 1), pytest.approx(rows.max() / top * 2 - 1))
        assert data.value_range == (-1.0, 1.0)
    with pytest.raises(DataError, match="holds numbers from 0 to 510; data.pixels=byte needs 0 to 255"):
        arrays(LEVELS * 2, tmp_path, pixels="byte")
    with pytest.raises(UsageError, match="pixels 'bytes' is unknown; did you mean byte"):
        arrays(LEVELS, tmp_path, pixels="bytes")
    with pytest.raises(UsageError, match="leave value_range out"):
        arrays(LEVELS, tmp_path, pixels="byte", value_range=[0.0, 255.0])


def test_a_range_or_standardising_decides(tmp_path: Path) -> None:
    assert arrays(LEVELS, tmp_path, value_range=[0.0, 255.0]).value_range == (0.0, 255.0)
    assert "standardised" in arrays(LEVELS, tmp_path, standardise=True).describe_reading()


@pytest.mark.parametrize(
    ("shape", "first", "second"),
    [
        ((9, 32, 3), ("grey", (1, 32, 3)), ("points", (96,))),
        ((9, 2, 50), ("grey", (1, 2, 50)), ("points", (100,))),
        ((9, 3, 3), ("grey", (1, 3, 3)), ("points", (9,))),
        ((9, 40, 4), ("grey", (1, 40, 4)), ("points", (160,))),
        ((9, 3, 8, 3), ("channels-first", (3, 8, 3)), ("channels-last", (3, 3, 8))),
        ((9, 1, 8, 1), ("channels-first", (1, 8, 1)), ("channels-last", (1, 1, 8))),
    ],
)
def test_shapes_with_two_readings(shape: tuple[int, ...], first: Any, second: Any, tmp_path: Path) -> None:
    rows = RNG.normal(size=shape)
    with pytest.raises(DataError, match="which can be read in two ways") as caught:
        arrays(rows, tmp_path)
    for layout, data_shape in (first, second):
        assert f"(data.layout={layout})" in str(caught.value)
        assert arrays(rows, tmp_path, layout=layout).data_shape == data_shape


def test_a_layout_that_does_not_fit(tmp_path: Path) -> None:
    for shape, layout in (((9, 8, 8, 3), "channels-first"), ((9, 8, 8), "channels-last"), ((9, 8), "grey")):
        with pytest.raises(UsageError, match=f"data.layout is {layout}, which needs"):
            arrays(RNG.normal(size=shape), tmp_path, layout=layout)
    with pytest.raises(DataError, match="with 1 or 3 channels") as caught:
        arrays(RNG.normal(size=(9, 8, 8, 4)), tmp_path)
    assert "transparency" in caught.value.hint


def test_rows_of_another_file_are_read_alike(tmp_path: Path) -> None:
    data = arrays(LEVELS.astype("f4"), tmp_path, pixels="byte")
    assert torch.equal(Arrays.image_rows(torch.from_numpy(LEVELS), tmp_path, data), SCALED[:, None])
    with pytest.raises(DataError, match="two ways"):
        Arrays.image_rows(torch.from_numpy(LEVELS), tmp_path)


@pytest.mark.parametrize("kind", ["u1", "f4"])
def test_memory_is_at_most_twice_that_of_the_rows(kind: str, tmp_path: Path) -> None:
    rows = np.zeros((400, 200, 200), dtype=kind)
    np.savez_compressed(tmp_path / "a.npz", x=rows)
    assert (tmp_path / "a.npz").stat().st_size < rows.nbytes / 200
    tracemalloc.start()
    Arrays("a.npz", directory=tmp_path)
    peak = tracemalloc.get_traced_memory()[1]  # of numpy; torch's copies are the second half
    tracemalloc.stop()
    assert peak < 1.3 * rows.nbytes
