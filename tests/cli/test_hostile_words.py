"""Words, names and streams that a command line may meet: refused in one message, or shown without being obeyed."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gebm_kit.cli import ui
from gebm_kit.cli.completion import complete_override, complete_path, complete_recipe, complete_run
from gebm_kit.cli.options import MOST_THREADS
from gebm_kit.cli.visible import LONGEST_LINE, visible, visible_cell, visible_json, visible_message

PROGRAM = [sys.executable, "-m", "gebm_kit"]
HOSTILE = "\x1b]0;title\x07\x1b[2J[bold]x[/bold]:smile:\x9b31m\u202e\r"


def finished(words: list[str], **options: Any) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run([*PROGRAM, *words], capture_output=True, timeout=120, **options)


@pytest.mark.parametrize(
    ("option", "value", "said"),
    [
        ("--threads", str(MOST_THREADS + 1), "--threads"),
        ("--threads", "10000000000000", "--threads"),
        ("--threads", "9" * 5000, "--threads"),
        ("--seed", str(2**63), "--seed"),
        ("--num-samples", str(10**13), "--num-samples"),
        ("--device", "", "--device"),
        ("--device", "meta", "device 'meta' can't be used"),
        ("--device", "xla", "device 'xla' can't be used"),
        ("--device", "privateuseone", "device 'privateuseone' can't be used"),
        ("--device", "cpu:7", "device 'cpu:7' can't be used"),
        ("--device", "cuda:9999", "device 'cuda:9999' can't be used"),
        ("--device", "c\udcff", "can't be used"),
        ("--checkpoint", "step-" + "9" * 5000, "is not known"),
        ("--checkpoint", "step-²", "is not known"),
        ("--out", "", "--out is empty"),
        ("--out", "a\udcff.npz", "--out 'a\\udcff.npz' is not UTF-8"),
        ("--out", "a" * 300 + ".npz", "a name of 304 bytes"),
        ("--out", "~no-such-user/x.npz", "home directory"),
        ("--images", "", "--images is empty"),
    ],
)  # fmt: skip
def test_values_that_no_option_can_have_are_refused(
    cli: Any, trained: Path, option: str, value: str, said: str
) -> None:
    result = cli("sample", trained, "--out", "unused.npz", option, value)
    assert (result.code, result.out) == (2, "")
    assert said in result.err
    assert len(result.err) < 3 * LONGEST_LINE


def test_more_draws_than_memory_or_disk_hold_are_refused(cli: Any, trained: Path, tmp_path: Path) -> None:
    result = cli("sample", trained, "--num-samples", 10**12, "--out", tmp_path / "x.npz")
    assert result.code == 2
    assert "1,000,000,000,000 draws" in result.err
    result = cli("sample", trained, "--num-samples", 10**12, "--out", tmp_path / "shards")
    assert result.code == 2
    assert "free" in result.err
    assert not (tmp_path / "shards").exists()


def test_a_tilde_is_the_home_directory(cli: Any, recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = recipe.parent / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    assert cli("recipes", "cp", "quickstart", "~/mine.yaml").code == 0
    assert cli("recipes", "check", "~/mine.yaml").code == 0
    assert cli("train", recipe, "train.steps=2", "--out=~/run", "-q").code == 0
    assert cli("sample", "~/run", "--num-samples", 40, "--out=~/draws.npz", "-q").code == 0
    assert {path.name for path in home.iterdir()} == {"mine.yaml", "run", "draws.npz"}
    assert cli("runs", "~").code == 0
    assert not (recipe.parent / "~").exists()


def test_a_place_that_is_refused_leaves_nothing_behind(cli: Any, recipe: Path) -> None:
    before = set(os.listdir(recipe.parent))
    for place in ("a\udcff", "", "~no-such-user/x", "a" * 300):
        assert cli("train", recipe, "--out", place, "-q").code == 2
    assert set(os.listdir(recipe.parent)) == before


@pytest.mark.parametrize("variable", ["WORLD_SIZE", "TORCHELASTIC_RESTART_COUNT"])
def test_a_wrong_environment_is_said(cli: Any, recipe: Path, monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv(variable, "many")
    result = cli("train", recipe, "-q")
    assert result.code == 2
    assert f"{variable} is 'many'" in result.err


def test_escape_sequences_and_markup_from_files_are_shown(cli: Any, run: Path) -> None:
    status = json.loads((run / "status.json").read_text()) | {"recipe": HOSTILE}
    (run / "status.json").write_text(json.dumps(status))
    result = cli("runs", run)
    assert result.code == 0
    assert "[bold]x[/bold]:smile:" in result.out + result.err
    assert not set(result.out + result.err) & set("\x1b\x07\x9b\u202e\r")

    result = cli("train", f"{HOSTILE}.yaml")
    assert not set(result.err) & set("\x1b\x07\x9b\u202e\r")


@pytest.mark.parametrize("stream", [1, 2])
def test_a_terminal_gets_no_escape_sequence_from_outside(stream: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ui, "is_terminal", lambda stream: True)
    written = io.StringIO()
    if stream == 1:
        monkeypatch.setattr(sys, "stdout", written)
        ui.table(HOSTILE, [HOSTILE], [[HOSTILE]])
    else:
        monkeypatch.setattr(sys, "stderr", written)
        with ui.Ui().progress():
            ui.Ui().note(HOSTILE)
            ui.Ui().warn(HOSTILE)
    assert "\x1b]" not in written.getvalue()
    assert "[bold]x[/bold]:smile:" in written.getvalue()


def test_text_is_made_visible() -> None:
    assert visible("a\x1bb\tc\nd\r\x9b\u202e\udcff") == "a\\x1bb\tc\nd\\x0d\\x9b\\u202e\\udcff"
    assert visible_cell("a\nb\tc") == "a\\nb\\tc"
    assert visible("größe, 大きさ") == "größe, 大きさ"
    assert len(visible_message("x" * 10**6)) < LONGEST_LINE + 10
    for encoding in ("ascii", "latin-1", "utf-8"):
        text = json.dumps({"ü大😀\udcff\x9b\u202e": 1}, ensure_ascii=False)
        shown = visible_json(text, encoding)
        shown.encode(encoding)
        assert json.loads(shown) == json.loads(text)


@pytest.mark.parametrize(
    "words", [["list"], ["list", "--json"], ["--help"], ["recipes", "show", "rün.yaml"], ["runs", "rün"]]
)
def test_a_stream_that_lacks_a_letter_shows_another_sign(words: list[str], recipe: Path) -> None:
    (recipe.parent / "rün.yaml").write_text("# ü大\n")
    (recipe.parent / "rün").mkdir()
    done = finished(words, env={**os.environ, "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"})
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.isascii()
    if "--json" in words:
        assert json.loads(done.stdout)["components"]


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
@pytest.mark.parametrize("words", ["list", "recipes check no-such"])
def test_closed_streams_end_no_command_in_a_traceback(closed: str, words: str) -> None:
    program = f"{sys.executable} -m gebm_kit {words} {closed}"
    done = subprocess.run(["sh", "-c", program], capture_output=True, timeout=120, check=False)
    assert done.returncode == (0 if words == "list" else 2)
    assert b"Traceback" not in done.stdout + done.stderr
    assert b"bug" not in done.stderr


def test_names_complete(trained: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def offered(words: str, place: int) -> list[str]:
        shell = {"COMP_WORDS": words, "COMP_CWORD": str(place), "_GEBM_KIT_COMPLETE": "complete_bash"}
        program = [sys.executable, "-c", "from gebm_kit.cli.app import main; main()"]
        return subprocess.run(
            program, env=os.environ | shell, capture_output=True, text=True, check=False
        ).stdout.split()

    assert "hmc" in offered("gebm-kit describe sampler h", 3)
    assert "sampler=hmc" in offered("gebm-kit train quickstart sampler=h", 3)
    assert "hmc" in offered("gebm-kit train quickstart sampler = h", 5)  # bash splits words at =
    assert "train.final.steps=" in complete_override("train.fin")
    assert complete_override("base.name=ml") == ["base.name=mlp"]
    assert complete_override("train.steps=1") == []
    assert "quickstart" in complete_recipe("qui")
    assert complete_run(f"{trained.parent}/") == [f"{trained}"]
    (tmp_path / "a\x1b[2J").mkdir()
    assert complete_path(f"{tmp_path}/", lambda path: True) == []
    for incomplete in ("~no-such-user/", "/no/such/", "\0/"):
        assert complete_path(incomplete, lambda path: True) == []


def test_the_streams_are_as_before_afterwards(cli: Callable[..., Any]) -> None:
    before = sys.stdout.errors
    assert cli("list").code == 0
    assert sys.stdout.errors == before
