"""MNIST-format files."""

from __future__ import annotations

import gzip
import itertools
import os
import struct
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from gebm_kit.core.errors import DataError
from gebm_kit.core.interfaces import HasLabels
from gebm_kit.core.progress import GebmKitWarning
from gebm_kit.data.idx import Idx

IMAGES = np.arange(20 * 4 * 3, dtype=np.int64).reshape(20, 4, 3) % 256
PARTS = ("train", "valid", "test")


def encode(array: np.ndarray, code: int = 8) -> bytes:
    return bytes([0, 0, code, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.astype("u1").tobytes()


def fill(folder: Path, zipped: bool = False, labels: bool = True) -> Path:
    for part, num in (("train", 20), ("t10k", 6)):
        files = {f"{part}-images-idx3-ubyte": encode(IMAGES[:num])}
        if labels:
            files[f"{part}-labels-idx1-ubyte"] = encode(np.arange(num) % 10)
        for name, content in files.items():
            if zipped:
                (folder / f"{name}.gz").write_bytes(gzip.compress(content))
            else:
                (folder / name).write_bytes(content)
    return folder


@pytest.mark.parametrize("zipped", [False, True])
def test_pixels_labels_and_parts(zipped: bool, tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    fill(tmp_path / "sub", zipped)
    data = Idx("sub", directory=tmp_path)
    assert data.data_shape == (1, 4, 3)
    assert data.value_range == (-1.0, 1.0)
    assert [len(data.split(part)) for part in PARTS] == [18, 2, 6]
    assert isinstance(data, HasLabels)
    assert data.num_classes == 10
    assert torch.equal(data.split("test").first(6)[:, 0], torch.from_numpy(IMAGES[:6]).float() / 127.5 - 1)
    assert data.labels("test").tolist() == [0, 1, 2, 3, 4, 5]
    by_content = {(torch.from_numpy(row).float() / 127.5 - 1).numpy().tobytes(): i % 10 for i, row in enumerate(IMAGES)}
    for part in ("train", "valid"):
        rows, labels = data.split(part).first(99), data.labels(part).tolist()
        assert [by_content[row[0].numpy().tobytes()] for row in rows] == labels


def test_files_that_were_unpacked_but_kept_their_name(tmp_path: Path) -> None:
    fill(tmp_path)
    for file in list(tmp_path.iterdir()):
        file.rename(tmp_path / f"{file.name}.gz")
    assert Idx(".", directory=tmp_path).data_shape == (1, 4, 3)


def test_without_labels(tmp_path: Path) -> None:
    fill(tmp_path, labels=False)
    assert not isinstance(Idx(".", directory=tmp_path), HasLabels)


def test_absent_files_say_how_to_get_them(tmp_path: Path) -> None:
    for path, message in (("nowhere", "does not exist"), (".", "holds no train-images-idx3-ubyte")):
        with pytest.raises(DataError, match=message) as caught:
            Idx(path, directory=tmp_path)
        assert "apt-get install dataset-fashion-mnist" in caught.value.hint
        assert "github.com/zalandoresearch/fashion-mnist" in caught.value.hint


def test_absent_test_files(tmp_path: Path) -> None:
    fill(tmp_path)
    (tmp_path / "t10k-images-idx3-ubyte").unlink()
    with pytest.raises(DataError, match="holds no t10k-images"):
        Idx(".", directory=tmp_path)


TRAIN_IMAGES, TRAIN_LABELS = "train-images-idx3-ubyte", "train-labels-idx1-ubyte"
DAMAGE: dict[str, tuple[str, Callable[[bytes], bytes], str]] = {
    "cut short": (TRAIN_IMAGES, lambda b: b[:-7], "should hold 20x4x3 elements"),
    "too long": (TRAIN_IMAGES, lambda b: b + b"x", "should hold 20x4x3 elements"),
    "cut in its header": (TRAIN_IMAGES, lambda b: b[:9], "ends within its header"),
    "empty": (TRAIN_IMAGES, lambda b: b"", "begins with nothing"),
    "two bytes": (TRAIN_IMAGES, lambda b: b[:2], "not an idx file"),
    "another format": (TRAIN_IMAGES, lambda b: b"\x89PNG" + b[4:], "begins with 89 50 4e 47, not 00 00 08 03"),
    "another type": (TRAIN_IMAGES, lambda b: encode(IMAGES, code=0x0D), "not an idx file of unsigned bytes"),
    "labels for images": (TRAIN_IMAGES, lambda b: encode(np.arange(9)), "with 3 dimensions"),
    "images for labels": (TRAIN_LABELS, lambda b: encode(IMAGES), "with 1 dimensions"),
    "no images": (TRAIN_IMAGES, lambda b: encode(IMAGES[:0]), "holds no image"),
    "one image": (TRAIN_IMAGES, lambda b: encode(IMAGES[:1]), "20 labels for 1 images"),
    "count mismatch": (TRAIN_LABELS, lambda b: encode(np.arange(19)), "19 labels for 20 images"),
    "sizes differ": (TRAIN_IMAGES, lambda b: encode(IMAGES.reshape(20, 2, 6)), "differ in size"),
    "damaged gzip": (TRAIN_IMAGES, lambda b: gzip.compress(b)[:-9], "can't be read"),
    "flipped bit in gzip": (
        TRAIN_IMAGES,
        lambda b: bytes(v ^ (1 if i == 60 else 0) for i, v in enumerate(gzip.compress(b))),
        "can't be read",
    ),
    "absurd sizes": (
        TRAIN_IMAGES,
        lambda b: bytes([0, 0, 8, 3]) + struct.pack(">3I", 2**31, 2**31, 4) + b[16:],
        "should hold 2147483648x2147483648x4",
    ),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_damaged_files(case: str, tmp_path: Path) -> None:
    name, damage, message = DAMAGE[case]
    fill(tmp_path)
    (tmp_path / name).write_bytes(damage((tmp_path / name).read_bytes()))
    with pytest.raises(DataError, match=message) as caught:
        Idx(".", directory=tmp_path)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("original", "spelled"),
    [
        ("{part}-{kind}-{idx}-ubyte", "{part}-{kind}.{idx}-ubyte"),
        ("{part}-{kind}-{idx}-ubyte", "{PART}-{KIND}-{IDX}-UBYTE.GZ"),
        ("{part}-{kind}-{idx}-ubyte", "emnist-letters-{part}-{kind}-{idx}-ubyte"),
        ("{part}-{kind}-{idx}-ubyte", "{part}_{kind}.{idx}"),
    ],
)
@pytest.mark.parametrize("test", ["t10k", "test"])
def test_names_of_other_sources(original: str, spelled: str, test: str, tmp_path: Path) -> None:
    fill(tmp_path)
    plain = Idx(".", directory=tmp_path)
    for part, kind, idx in itertools.product(("train", "t10k"), ("images", "labels"), ("idx3", "idx1")):
        words = {"part": part, "kind": kind, "idx": idx}
        file = tmp_path / original.format(**words)
        words["part"] = test if part == "t10k" else part
        if file.exists():
            file.rename(tmp_path / spelled.format(**words, **{k.upper(): v.upper() for k, v in words.items()}))
    found = Idx(".", directory=tmp_path)
    for part in PARTS:
        assert torch.equal(found.split(part).first(99), plain.split(part).first(99))
        assert torch.equal(found.labels(part), plain.labels(part))


def test_several_sets_in_one_folder_need_a_prefix(tmp_path: Path) -> None:
    fill(tmp_path)
    for file in list(tmp_path.iterdir()):
        (tmp_path / f"emnist-a-{file.name}").write_bytes(file.read_bytes())
        file.rename(tmp_path / f"emnist-b-{file.name}")
    with pytest.raises(
        DataError, match="several files of images of the test part: emnist-a-t10k.*, emnist-b-t10k"
    ) as caught:
        Idx(".", directory=tmp_path)
    assert "data.prefix" in caught.value.hint
    data = Idx(".", prefix="emnist-a-", directory=tmp_path)
    assert "emnist-a-train-images-idx3-ubyte" in data.describe_reading()
    assert "emnist-b" not in data.describe_reading()


def test_original_names_win_and_folders_of_that_name_are_passed_over(tmp_path: Path) -> None:
    fill(tmp_path)
    (tmp_path / "train-images.idx3-ubyte").mkdir()
    (tmp_path / "test-images-idx3-ubyte").write_bytes(b"another file")
    assert len(Idx(".", directory=tmp_path).split("test")) == 6


def test_labels_that_are_left_out_are_said(tmp_path: Path) -> None:
    fill(tmp_path)
    (tmp_path / "t10k-labels-idx1-ubyte").rename(tmp_path / "t10k-labels-idx2-int")
    with pytest.warns(GebmKitWarning) as warned:
        data = Idx(".", directory=tmp_path)
    assert not isinstance(data, HasLabels)
    said = [str(warning.message) for warning in warned]
    assert any("t10k-labels-idx2-int is left out" in text for text in said)
    assert any("labels of one part only" in text for text in said)


def test_the_line_about_what_was_read(tmp_path: Path) -> None:
    line = Idx(".", directory=fill(tmp_path)).describe_reading()
    for words in ("26 rows (train 18, valid 2, test 6)", "shape 1x4x3", "0..255 -> float32 in [-1, 1]", "10 classes"):
        assert words in line


@pytest.mark.parametrize("header", [b"\0\0\0\0", bytes([0, 0, 8, 3]) + struct.pack(">3I", 2**16, 2**10, 2**10)])
def test_no_more_is_unpacked_than_the_header_states(header: bytes, tmp_path: Path) -> None:
    """Two megabytes of zeros in two kilobytes; the second header claims 64 GB."""
    fill(tmp_path)
    (tmp_path / TRAIN_IMAGES).write_bytes(gzip.compress(header + b"\0" * 2**21))
    tracemalloc.start()
    with pytest.raises(DataError, match="not an idx file|should hold 65536x1024x1024 elements"):
        Idx(".", directory=tmp_path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**21


def test_a_named_pipe_is_not_waited_for(tmp_path: Path) -> None:
    fill(tmp_path)
    (tmp_path / TRAIN_LABELS).unlink()
    os.mkfifo(tmp_path / TRAIN_LABELS)
    with pytest.raises(DataError, match="is a named pipe"):
        Idx(".", directory=tmp_path)
