"""The gallery: its page follows from its numbers, every picture has a text alternative, and all of them are small."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import gallery
from gebm_kit.config.load import shipped_recipes

FOLDER = Path(__file__).parent.parent / "docs" / "gallery"


def test_the_page_follows_from_the_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gallery, "GALLERY", tmp_path)
    gallery.write_page(json.loads((FOLDER / "results.json").read_text()))
    assert (tmp_path / "index.md").read_text() == (FOLDER / "index.md").read_text()
    assert (tmp_path / "results.json").read_text() == (FOLDER / "results.json").read_text()


def test_every_entry_is_there_with_a_small_picture() -> None:
    names = {entry.name for entry in gallery.ENTRIES}
    assert set(json.loads((FOLDER / "results.json").read_text())) == names
    assert {path.stem for path in FOLDER.glob("*.webp")} == names
    assert sum(path.stat().st_size for path in FOLDER.glob("*.webp")) < 1_500_000
    assert all(len(entry.alt) > 40 for entry in gallery.ENTRIES)


def test_every_command_names_a_shipped_recipe() -> None:
    trained = [command.split()[2] for entry in gallery.ENTRIES for command in entry.commands if " train " in command]
    assert len(trained) == 6
    assert set(trained) <= set(shipped_recipes())


def test_what_a_stop_left_is_resumed_and_its_time_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A command that failed is an end with its name; the seconds until then are kept."""
    monkeypatch.setattr(gallery, "ROOT", tmp_path)
    entry = gallery.Entry("one", "One", "", ("gebm-kit train nothing-of-that-name --out {work}/one",), "")
    (tmp_path / "one.seconds").write_text("100")
    with pytest.raises(SystemExit, match="one: .*nothing-of-that-name .*--resume --quiet ended with 2"):
        gallery.train(entry, {"work": "."})
    assert float((tmp_path / "one.seconds").read_text()) > 100
