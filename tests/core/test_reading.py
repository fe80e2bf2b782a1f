"""Bounded readers: whatever is wrong with a file is one error with its name, before memory is allocated."""

from __future__ import annotations

import os
import tracemalloc
from pathlib import Path

import pytest

from gebm_kit.core import reading
from gebm_kit.core.errors import CheckpointError, DataError


def test_a_regular_file_is_read(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    assert reading.read_file(tmp_path / "a") == b"abc"
    assert reading.read_text(tmp_path / "a") == "abc"


@pytest.mark.parametrize("kind", ["missing", "directory", "pipe", "device", "loop", "nul", "pipe behind a link"])
def test_what_is_not_a_regular_file_is_refused_without_blocking(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "thing"
    if kind == "directory":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "loop":
        path.symlink_to(path)
    elif kind == "nul":
        path = Path(str(path) + "\0")
    elif kind == "pipe behind a link":
        os.mkfifo(tmp_path / "pipe")
        path.symlink_to(tmp_path / "pipe")
    with pytest.raises(CheckpointError, match="thing"):
        reading.read_file(path, error=CheckpointError)


def test_a_link_is_refused_where_links_are_not_followed(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    (tmp_path / "b").symlink_to(tmp_path / "a")
    assert reading.read_file(tmp_path / "b") == b"abc"
    with pytest.raises(DataError, match="symbolic link"):
        reading.read_file(tmp_path / "b", follow=False)


def test_a_file_above_the_limit_is_not_read(tmp_path: Path) -> None:
    with open(tmp_path / "sparse", "wb") as file:
        file.truncate(2**40)
    with pytest.raises(DataError, match=r"1\.1 TB; at most 100 bytes"):
        reading.read_file(tmp_path / "sparse", limit=100)
    with pytest.raises(DataError, match=r"1\.1 TB"):
        reading.read_file(tmp_path / "sparse")


def test_text_that_is_not_utf8_names_the_byte(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"ab\xff")
    with pytest.raises(DataError, match="byte 2 is 0xff"):
        reading.read_text(tmp_path / "a")


@pytest.mark.parametrize(
    "text", ["[" * 100_000, "[" * 100 + "]" * 100, '{"a":' * 80 + "1" + "}" * 80, "9" * 5000, "{", ""]
)
def test_json_that_is_malformed_or_deep_is_refused(text: str) -> None:
    with pytest.raises(DataError, match="the record"):
        reading.parse_json(text, name="the record")


def test_json_within_the_bounds_is_parsed() -> None:
    assert reading.parse_json('[{"a": [1, NaN]}' + ", []" * 100 + "]", name="x")[1] == []


@pytest.mark.parametrize(
    "text",
    [
        "[" * 100_000,
        "- " * 5000,
        "a: &a [1]\nb: *a",
        "!!bool foo",
        "!!int x",
        "!!timestamp foo",
        "? [a]\n: 1",
        "a: \0",
        "!!python/object/apply:os.system [ls]",
        "{" * 70 + "}" * 70,
        "!!binary ü",
        "2024-13-45",
    ],
)
def test_yaml_that_is_malformed_or_deep_is_refused(text: str) -> None:
    with pytest.raises(DataError, match="the record"):
        reading.parse_yaml(text, name="the record")


def test_yaml_within_the_bounds_is_parsed() -> None:
    assert reading.parse_yaml("a: {b: [1, 2.5]}", name="x") == {"a": {"b": [1, 2.5]}}


def test_available_memory_is_positive_and_below_what_any_machine_has() -> None:
    assert 2**20 < reading.available_memory() <= 2**62


def test_amounts_are_written_for_people() -> None:
    assert [reading.amount(n) for n in (3, 3200, 7_500_000, 2**40)] == ["3 bytes", "3.2 kB", "7.5 MB", "1.1 TB"]


def test_no_more_memory_is_asked_for_than_the_file_has(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    tracemalloc.start()
    try:
        assert reading.read_file(tmp_path / "a", limit=2**40) == b"abc"
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()
