"""CIFAR-10's binary archive."""

from __future__ import annotations

import io
import os
import pickle
import shutil
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from gebm_kit.core.errors import DataError, UsageError
from gebm_kit.core.interfaces import HasLabels, HasStoredRows
from gebm_kit.data import cifar10
from gebm_kit.data.cifar10 import Cifar10

PARTS = ("train", "valid", "test")


def records(path: Path) -> np.ndarray:
    return np.frombuffer(path.read_bytes(), np.uint8).reshape(-1, 3073)


def test_pixels_labels_and_parts(formats: Any, tmp_path: Path) -> None:
    folder = formats.cifar10(tmp_path, archive=False)
    data = Cifar10(folder.name, directory=tmp_path)
    assert data.data_shape == (3, 32, 32)
    assert data.value_range == (-1.0, 1.0)
    assert isinstance(data, HasLabels)
    assert data.num_classes == 10
    assert [len(data.split(part)) for part in PARTS] == [54, 6, 12]
    test = records(folder / "test_batch.bin")
    # red, green, blue, each row by row
    blue = test[5, 1 + 2048 + 31 * 32 + 7]
    assert data.split("test").first(12)[5, 2, 31, 7].item() == pytest.approx(blue / 127.5 - 1, abs=1e-6)
    assert torch.equal(
        data.split("test").first(12).flatten(1), torch.from_numpy(test[:, 1:].copy()).float() / 127.5 - 1
    )
    assert data.labels("test").tolist() == test[:, 0].tolist()
    every = np.concatenate([records(folder / f"data_batch_{number}.bin") for number in range(1, 6)])
    of_pixels = {row[1:].tobytes(): int(row[0]) for row in every}
    seen = set()
    for part in ("train", "valid"):
        split = data.split(part)
        assert isinstance(split, HasStoredRows)
        rows = split.stored(None)
        assert rows.dtype == torch.uint8
        assert [of_pixels[row.numpy().tobytes()] for row in rows] == data.labels(part).tolist()
        seen |= {row.numpy().tobytes() for row in rows}
    assert len(seen) == 60


def test_archive_folder_and_the_folder_above_are_the_same(formats: Any, tmp_path: Path) -> None:
    folder = formats.cifar10(tmp_path / "a", archive=False)
    packed = formats.cifar10(tmp_path / "b")
    plain = tmp_path / "plain.tar"
    with tarfile.open(plain, "w") as archive:
        archive.add(folder, "cifar-10-batches-bin")
    first, *others = (Cifar10(str(path)) for path in (folder, folder.parent, packed, plain))
    for other in others:
        for part in PARTS:
            assert torch.equal(first.split(part).first(99), other.split(part).first(99))
            assert torch.equal(first.labels(part), other.labels(part))
    assert not torch.equal(first.split("valid").first(99), Cifar10(str(folder), seed=1).split("valid").first(99))


def test_the_python_version_is_refused_because_it_is_a_pickle(tmp_path: Path) -> None:
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    for name in (*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"):
        (folder / name).write_bytes(pickle.dumps({b"data": np.zeros((2, 3072), np.uint8), b"labels": [0, 1]}))
    with tarfile.open(tmp_path / "cifar-10-python.tar.gz", "w:gz") as archive:
        archive.add(folder, folder.name)
    for path in (folder, tmp_path, tmp_path / "cifar-10-python.tar.gz"):
        with pytest.raises(DataError, match=r"a pickle: reading one runs code") as caught:
            Cifar10(str(path))
        assert "cifar-10-binary.tar.gz" in caught.value.hint


def test_bad_files(formats: Any, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not exist") as caught:
        Cifar10(str(tmp_path / "nowhere"))
    assert "binary" in caught.value.hint
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"holds no data_batch_1\.bin"):
        Cifar10(str(tmp_path / "empty"))
    folder = formats.cifar10(tmp_path / "a", archive=False)
    content = (folder / "data_batch_3.bin").read_bytes()
    (folder / "data_batch_3.bin").write_bytes(content[:-1])
    with pytest.raises(DataError, match=r"data_batch_3\.bin has 36875 bytes.*records of 3073"):
        Cifar10(str(folder))
    (folder / "data_batch_3.bin").write_bytes(b"\x0a" + content[1:])
    with pytest.raises(DataError, match="record 0 has class 10"):
        Cifar10(str(folder))
    packed = formats.cifar10(tmp_path / "b")
    whole = packed.read_bytes()
    for damaged in (whole[: len(whole) // 2], b"hello", b""):
        packed.write_bytes(damaged)
        with pytest.raises(DataError, match=r"can't be read|holds no"):
            Cifar10(str(packed))
    with tarfile.open(packed, "w:gz") as archive:
        info = tarfile.TarInfo("cifar-10-batches-bin/data_batch_1.bin")
        info.size = 3073
        archive.addfile(info, io.BytesIO(bytes(3073)))
    with pytest.raises(DataError, match=r"holds no data_batch_2\.bin"):
        Cifar10(str(packed))
    shutil.rmtree(folder)
    with pytest.raises(UsageError, match="valid_fraction"):
        Cifar10(str(folder), valid_fraction=0.0)


def test_archives_that_unpack_to_too_much(formats: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    packed = formats.cifar10(tmp_path)
    monkeypatch.setattr(cifar10, "MAX_UNPACKED", 100_000)
    with pytest.raises(DataError, match=r"unpacks to more than 100\.0 kB") as caught:
        Cifar10(str(packed))
    assert "cifar-10-binary.tar.gz" in caught.value.hint


def test_a_named_pipe_in_place_of_a_file(formats: Any, tmp_path: Path) -> None:
    folder = formats.cifar10(tmp_path, archive=False)
    (folder / "data_batch_2.bin").unlink()
    os.mkfifo(folder / "data_batch_2.bin")
    with pytest.raises(DataError, match="is a named pipe"):
        Cifar10(str(folder))


def test_the_line_about_what_was_read(formats: Any, tmp_path: Path) -> None:
    line = Cifar10(str(formats.cifar10(tmp_path))).describe_reading()
    assert "read 72 rows (train 54, valid 6, test 12) of shape 3x32x32" in line
    assert "unsigned bytes 0..255 -> float32 in [-1, 1]; labels: 10 classes" in line
