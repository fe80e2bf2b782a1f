"""Paths that a person wrote."""

from __future__ import annotations

from pathlib import Path

import pytest

from gebm_kit.core.errors import DataError, UsageError
from gebm_kit.core.paths import user_path


def test_a_tilde_is_the_home_directory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert user_path("~/a") == tmp_path / "a"
    assert user_path(Path("~")) == tmp_path
    assert user_path("a/~b") == Path("a/~b")


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("", "is empty"),
        ("a\0b", "null character"),
        ("a\udcff", "not UTF-8"),
        ("a" * 256, "a name of 256 bytes"),
        ("ü" * 128, "a name of 256 bytes"),
        ("a/" * 2500, "at most 4,000"),
        ("~no-such-user/a", "home directory"),
    ],
)
def test_what_no_file_system_takes_is_refused(path: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        user_path(path)
    with pytest.raises(DataError, match="the file"):
        user_path(path, what="the file", error=DataError)
