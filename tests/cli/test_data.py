"""``gebm-kit data``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest


@pytest.fixture
def words(formats: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return recipe and override, in an empty working directory with its own cache."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GEBM_KIT_DATA_CACHE", str(tmp_path / "cache"))
    folder = formats.celeba(tmp_path / "faces", (6, 3, 2))
    (folder / "img_align_celeba" / "000002.jpg").write_bytes(b"no image")
    return ["celeba", "data.path=faces"]


def test_prepare(cli: Any, words: list[str], tmp_path: Path) -> None:
    made = cli("data", "prepare", *words)
    assert made.code == 0, made.err
    assert "recipe    celeba: prepared in" in made.out
    assert "images    6 train, 3 valid, 2 test; 3x64x64\n" in made.out
    assert "000002.jpg: it is not an image" in made.out
    assert "prepare 11/11" in made.err
    assert "1 of at most 10" in made.err
    found = cli("data", "prepare", *words, "--json", "--verify").json
    path = Path(found["path"])
    assert path.is_relative_to(tmp_path / "cache")
    assert found["checksum"] in made.out
    assert {key: found[key] for key in found if key not in ("path", "checksum", "skipped")} == {
        "schema": 1,
        "recipe": "celeba",
        "made": False,
        "verified": True,
        "shape": [3, 64, 64],
        "counts": {"train": 6, "valid": 3, "test": 2},
        "num_classes": None,
        "bytes": 11 * 3 * 64 * 64,
    }
    assert len(found["skipped"]) == 1
    assert sum(file.stat().st_size for file in path.glob("*.u8")) == found["bytes"]
    again = cli("data", "prepare", *words, "--force", "--quiet", "--threads", "1")
    assert (again.code, "prepared in" in again.out) == (0, True)
    assert "prepare 11" not in again.err


def test_verify_names_what_is_damaged(cli: Any, words: list[str]) -> None:
    path = Path(cli("data", "prepare", *words, "--json").json["path"])
    with open(path / "test.u8", "r+b") as file:
        file.write(b"other")
    done = cli("data", "prepare", *words, "--verify")
    assert (done.code, done.out) == (2, "")
    assert "test.u8 is damaged" in done.err
    assert "--force" in done.err


def test_errors(cli: Any, words: list[str]) -> None:
    for given, code, message in (
        (["data.path=faces"], 2, "no RECIPE given"),
        (["quickstart"], 2, "'digits' does not consist of image files"),
        (["celeba", "data.path=nowhere"], 2, "does not exist"),
        (["celeba", "data.pth=faces"], 2, "did you mean"),
        ([*words, "data.max_corrupt=0"], 2, "000002.jpg can't be decoded"),
    ):
        done = cli("data", "prepare", *given)
        assert (done.code, done.out) == (code, ""), given
        assert message in done.err
        assert "Traceback" not in done.err


def test_a_recipe_is_found_beside_a_folder_of_its_name(cli: Any, words: list[str]) -> None:
    """A shipped recipe is found even if a data folder has its name."""
    Path("faces").rename("celeba")
    assert cli("data", "prepare", "celeba", "data.path=celeba", "--quiet").code == 0
