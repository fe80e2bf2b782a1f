"""Bounded readers of compressed files and arrays: a damaged or boastful file is one error before memory is allocated."""

from __future__ import annotations

import gzip
import io
import zipfile
from pathlib import Path

import numpy as np
import pytest

from gebm_kit.core import archives
from gebm_kit.core.errors import DataError


def test_gzip_is_unpacked_up_to_the_limit(tmp_path: Path) -> None:
    path = tmp_path / "zeros.gz"
    path.write_bytes(gzip.compress(bytes(5_000_000)))
    assert archives.gunzip(path, limit=5_000_000) == bytes(5_000_000)
    with pytest.raises(DataError, match=r"more than 1\.0 MB"):
        archives.gunzip(path, limit=1_000_000)
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(DataError, match="can't be unpacked"):
        archives.gunzip(path)


def archive_of(**members: bytes) -> zipfile.ZipFile:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return zipfile.ZipFile(stream)


def test_a_zip_member_is_unpacked_up_to_the_limit() -> None:
    archive = archive_of(a=bytes(3_000_000))
    assert len(archives.zip_member(archive, "a")) == 3_000_000
    with pytest.raises(DataError, match=r"a unpacks to 3\.0 MB; at most 1\.0 MB"):
        archives.zip_member(archive, "a", limit=1_000_000)
    with pytest.raises(DataError, match="b can't be read"):
        archives.zip_member(archive, "b")


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("shape", [(), (0, 3), (4,), (2, 3, 4)])
def test_arrays_come_back_as_numpy_reads_them(tmp_path: Path, shape: tuple[int, ...], order: str) -> None:
    array = np.array(np.random.default_rng(0).normal(size=shape), order=order)  # type: ignore[call-overload]
    np.save(tmp_path / "a.npy", array)
    np.savez_compressed(tmp_path / "a.npz", x=array, y=np.arange(3))
    assert np.array_equal(archives.read_npy_file(tmp_path / "a.npy"), array)
    with archives.NpzArchive(tmp_path / "a.npz") as archive:
        assert archive.names == ["x", "y"]
        assert np.array_equal(archive.read("x"), array)
        assert np.array_equal(archive.read("y"), np.arange(3))


def header(shape: str, dtype: str = "'<f8'") -> bytes:
    text = f"{{'descr': {dtype}, 'fortran_order': False, 'shape': {shape}, }}".encode()
    text += b" " * (118 - len(text) - 1) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text


@pytest.mark.parametrize(
    "content",
    [
        header("(10**9,)"),
        header("(1000000000000,)"),
        header("(-1, 4)"),
        header("(4,)") + bytes(31),
        b"",
        b"\x93NUMPY",
        header("(4,)", "'|O'") + bytes(32),
        header("(((" * 40),
        header("(2**31, 2**31, 2**31)"),
        header("(4,)")[:50],
    ],
)
def test_a_damaged_array_is_refused_before_memory_is_allocated(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.npy").write_bytes(content)
    with pytest.raises(DataError, match=r"a\.npy"):
        archives.read_npy_file(tmp_path / "a.npy")
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("x.npy", content)
    with archives.NpzArchive(tmp_path / "a.npz") as npz, pytest.raises(DataError, match=r"a\.npz"):
        npz.read("x")


def test_flipped_bytes_in_an_archive_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=np.arange(100))
    content = bytearray((tmp_path / "a.npz").read_bytes())
    content[600] ^= 0xFF
    (tmp_path / "a.npz").write_bytes(bytes(content))
    with archives.NpzArchive(tmp_path / "a.npz") as archive, pytest.raises(DataError, match="damaged"):
        archive.read("x")
