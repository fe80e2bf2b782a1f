"""Bounded readers of compressed files and arrays: a damaged or boastful file is one error before memory is allocated."""

from __future__ import annotations

import contextlib
import gzip
import io
import os
import tarfile
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest

from gebm_kit.core import archives
from gebm_kit.core.errors import DataError


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


def test_bytes_after_an_array_are_refused(tmp_path: Path) -> None:
    """A header that claims less than the file holds is as damaged as one that claims more."""
    np.save(tmp_path / "a.npy", np.arange(300.0))
    content = (tmp_path / "a.npy").read_bytes()
    (tmp_path / "a.npy").write_bytes(content.replace(b"(300,)", b"(200,)"))
    with pytest.raises(DataError, match=r"more bytes follow than its header, shape \(200,\) of float64, accounts for"):
        archives.read_npy_file(tmp_path / "a.npy")


@pytest.mark.parametrize(
    "shape", ["(0, 10**40)", "(0, 99999999999999999999999)", f"({'1, ' * 70})", "(-1, 3)", "(2.5,)", "[3]", "3"]
)
def test_shapes_that_no_array_has(shape: str, tmp_path: Path) -> None:
    header = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}".encode()
    header += b" " * (-len(header) % 64) + b"\n"
    content = b"\x93NUMPY\1\0" + len(header).to_bytes(2, "little") + header + bytes(64)
    (tmp_path / "a.npy").write_bytes(content)
    with pytest.raises(DataError, match=r"a\.npy"):
        archives.read_npy_file(tmp_path / "a.npy")


def test_a_long_header_is_refused_before_it_is_read(tmp_path: Path) -> None:
    start = b"\x93NUMPY\2\0" + (2**31).to_bytes(4, "little")
    with zipfile.ZipFile(tmp_path / "a.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x.npy", start + bytes(2**22))
    with archives.NpzArchive(tmp_path / "a.npz") as found:
        for read in (found.read, found.header):
            with pytest.raises(DataError, match=r"its header claims 2\.1 GB"):
                read("x")


def test_the_header_of_one_array(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=np.zeros((4, 5), dtype=np.int16))
    with archives.NpzArchive(tmp_path / "a.npz") as found:
        assert found.header("x") == ((4, 5), np.dtype(np.int16))
        with pytest.raises(DataError, match="holds no array 'y'"):
            found.header("y")


def tar_of(path: Path, mode: str = "w:gz", **members: bytes) -> Path:
    with tarfile.open(path, mode) as archive:  # type: ignore[call-overload]
        for name, content in members.items():
            member = tarfile.TarInfo(f"folder/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:bz2", "w:xz"])
def test_members_of_a_tar_archive(mode: str, tmp_path: Path) -> None:
    path = tar_of(tmp_path / "a.tar", mode, a=b"first", b=bytes(3_000_000), c=b"last")
    found = archives.tar_members(path, {"a", "c"}, limit=10_000_000)
    assert found.contents == {"a": b"first", "c": b"last"}
    assert found.names == ("a", "b", "c")
    with pytest.raises(DataError, match=r"unpacks to more than 1\.0 MB"):
        archives.tar_members(path, {"c"}, limit=1_000_000)


def test_damaged_tar_archives(tmp_path: Path) -> None:
    path = tar_of(tmp_path / "a.tar.gz", a=bytes(range(256)) * 400)
    whole = path.read_bytes()
    rng = np.random.default_rng(0)
    for _ in range(200):
        damaged = bytearray(whole if rng.random() < 0.5 else gzip.decompress(whole))
        damaged[int(rng.integers(0, min(len(damaged), 1500)))] ^= 1 << int(rng.integers(0, 8))
        path.write_bytes(damaged[: int(rng.integers(1, len(damaged) + 1))] if rng.random() < 0.3 else damaged)
        with contextlib.suppress(DataError):
            archives.tar_members(path, {"a"}, limit=10_000_000)


def test_a_tar_header_that_claims_gigabytes(tmp_path: Path) -> None:
    """tarfile would read a name of the size that the header states, in one piece."""
    name = tarfile.TarInfo("././@LongLink")
    name.type, name.size = tarfile.GNUTYPE_LONGNAME, 3 * 2**30
    (tmp_path / "a.tar.gz").write_bytes(gzip.compress(name.tobuf(tarfile.GNU_FORMAT) + bytes(2**23)))
    tracemalloc.start()
    with pytest.raises(DataError, match=r"a\.tar\.gz can't be read: a header claims 3\.2 GB"):
        archives.tar_members(tmp_path / "a.tar.gz", {"a"}, limit=2**33)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**22


def test_a_tar_archive_of_headers_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archives, "MAX_MEMBERS", 50)
    path = tar_of(tmp_path / "a.tar", "w", **{f"m{index}": b"" for index in range(51)})
    with pytest.raises(DataError, match="has more than 50 members"):
        archives.tar_members(path, {"a"}, limit=2**30)


def test_a_named_pipe_is_not_unpacked(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.tar.gz")
    with pytest.raises(DataError, match="is a named pipe"):
        archives.tar_members(tmp_path / "a.tar.gz", {"a"}, limit=2**30)


def test_two_members_of_one_name_are_refused(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        for folder in ("x", "y"):
            info = tarfile.TarInfo(f"{folder}/a")
            info.size = 1
            archive.addfile(info, io.BytesIO(b"1"))
    with pytest.raises(DataError, match="more than one a"):
        archives.tar_members(tmp_path / "a.tar", {"a"}, limit=100_000)
