"""The npz batches of the downsampled ImageNet."""

from __future__ import annotations

import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from gebm_kit.core.errors import DataError
from gebm_kit.core.interfaces import HasLabels
from gebm_kit.data.imagenet32 import Imagenet32

PARTS = ("train", "valid", "test")


@pytest.mark.parametrize("side", [32, 8])
def test_pixels_labels_and_parts(side: int, formats: Any, tmp_path: Path) -> None:
    folder = formats.imagenet32(tmp_path, each=10, side=side)
    data = Imagenet32(".", valid_fraction=0.2, directory=tmp_path)
    assert data.data_shape == (3, side, side)
    assert data.value_range == (-1.0, 1.0)
    assert isinstance(data, HasLabels)
    assert data.num_classes == 1000
    assert [len(data.split(part)) for part in PARTS] == [24, 6, 10]
    files = [np.load(folder / f"train_data_batch_{number}.npz") for number in (1, 2, 10)]
    of_pixels = {
        row.tobytes(): int(label) - 1 for file in files for row, label in zip(file["data"], file["labels"], strict=True)
    }
    seen = []
    for part in ("train", "valid"):
        rows = data.split(part).stored(None)
        assert rows.dtype == torch.uint8
        seen += [row.numpy().tobytes() for row in rows]
        assert [of_pixels[row.numpy().tobytes()] for row in rows] == data.labels(part).tolist()
    assert sorted(seen) == sorted(of_pixels)
    test = np.load(folder / "val_data.npz")
    assert torch.equal(data.split("test").first(99).flatten(1), torch.from_numpy(test["data"]).float() / 127.5 - 1)
    assert data.labels("test").tolist() == (test["labels"] - 1).tolist()
    other = Imagenet32(".", valid_fraction=0.2, seed=1, directory=tmp_path)
    assert not torch.equal(data.split("valid").first(6), other.split("valid").first(6))


def test_the_pickled_batches_are_refused(tmp_path: Path) -> None:
    for name in ("train_data_batch_1", "val_data"):
        (tmp_path / name).write_bytes(pickle.dumps({"data": np.zeros((2, 3072), np.uint8), "labels": [1, 2]}))
    with pytest.raises(DataError, match=r"Python version of the batches, pickles: reading one runs code") as caught:
        Imagenet32(str(tmp_path))
    assert "npz format" in caught.value.hint


def test_bad_files(formats: Any, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not exist"):
        Imagenet32(str(tmp_path / "nowhere"))
    with pytest.raises(DataError, match=r"holds no train_data_batch_\*\.npz"):
        Imagenet32(str(tmp_path))
    folder = formats.imagenet32(tmp_path / "a", each=4, side=8)
    first, whole = folder / "train_data_batch_1.npz", (folder / "train_data_batch_1.npz").read_bytes()
    good = dict(np.load(first))
    for damaged in (whole[: len(whole) // 2], b"hello", b""):
        first.write_bytes(damaged)
        with pytest.raises(DataError, match=r"batch_1\.npz can't be read"):
            Imagenet32(str(folder))
    for change, message in (
        ({"data": good["data"].astype(np.float32)}, "not .N, 192. of unsigned bytes"),
        ({"data": good["data"][:, :-2]}, r"data has shape \(4, 190\), not \(N, 3 \* side \* side\)"),
        ({"labels": np.array([0, 1, 2, 3])}, "labels go from 0 to 3, not 1 to 1000"),
        ({"labels": np.array([1, 2])}, r"\(2,\) labels for 4 images"),
        ({"data": np.array([[None]], dtype=object)}, "batch_1"),
    ):
        np.savez(first, **{**good, **change})
        with pytest.raises(DataError, match=message):
            Imagenet32(str(folder))
    np.savez(first, data=good["data"])
    with pytest.raises(DataError, match="can't be read"):
        Imagenet32(str(folder))
    first.write_bytes(whole)
    (folder / "val_data.npz").unlink()
    with pytest.raises(DataError, match=r"holds no val_data\.npz"):
        Imagenet32(str(folder))


def test_a_header_that_claims_more_than_the_file_holds(formats: Any, tmp_path: Path) -> None:
    """The shape is known before anything is allocated for the images."""
    folder = formats.imagenet32(tmp_path, each=4, side=8)
    header = b"{'descr': '|u1', 'fortran_order': False, 'shape': (1000000000, 192), }"
    header += b" " * (-(len(header) + 11) % 64) + b"\n"
    content = b"\x93NUMPY\1\0" + len(header).to_bytes(2, "little") + header
    with zipfile.ZipFile(folder / "train_data_batch_2.npz", "w") as archive:
        archive.writestr("data.npy", content)
    with pytest.raises(DataError, match=r"batch_2\.npz can't be read: data of shape \(1000000000, 192\)"):
        Imagenet32(str(folder))


def test_the_line_about_what_was_read(formats: Any, tmp_path: Path) -> None:
    line = Imagenet32(str(formats.imagenet32(tmp_path, each=10, side=8)), valid_fraction=0.2).describe_reading()
    assert "read 40 rows (train 24, valid 6, test 10) of shape 3x8x8" in line
    assert "labels: 1000 classes" in line
