"""Behaviour that all commands share: errors, exit codes, output for people and for programs."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

import gebm_kit
from gebm_kit.cli import app as program
from gebm_kit.core import errors
from gebm_kit.core.progress import Progress
from gebm_kit.core.progress_lines import PlainProgress

PROGRAM = [sys.executable, "-m", "gebm_kit"]

COMMANDS = [
    ["train"],
    ["sample"],
    ["eval"],
    ["list"],
    ["describe"],
    ["doctor"],
    ["recipes", "ls"],
    ["recipes", "show"],
    ["recipes", "cp"],
    ["recipes", "check"],
    ["plugins", "list"],
    ["plugins", "info"],
    ["data", "prepare"],
]


def test_version(cli: Any) -> None:
    result = cli("--version")
    assert (result.code, result.out) == (0, f"gebm-kit {gebm_kit.__version__}\n")


def test_without_words_there_is_help(cli: Any) -> None:
    result = cli()
    assert result.code == 0
    for words in COMMANDS:
        assert words[0] in result.out


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_every_command_has_help_and_the_common_options(cli: Any, words: list[str]) -> None:
    result = cli(*words, "--help")
    assert result.code == 0
    for option in ("--json", "--quiet", "--debug"):
        assert option in result.out
    if words[0] in ("train", "sample", "eval"):
        assert "--device" in result.out
        assert "--threads" in result.out


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (["sample", "num_samples=5"], "Write the whole key: sample.num_samples=5."),
        (["eval", "run", "num_samples=5"], "Write the whole key: sample.num_samples=5 or eval.num_samples=5."),
        (["score", "run", "rows.csv", "space=raw"], "Write the whole key: nll.space=raw."),
        (["sample", "run", "batch_size=5"], "What a run was trained with is fixed"),
        (["sample", "run", "train.steps=5"], "What a run was trained with is fixed"),
    ],
)
def test_a_key_without_its_section_is_written_out_in_the_hint(cli: Any, words: list[str], hint: str) -> None:
    result = cli(*words, "--json")
    assert result.code == 2
    assert hint in result.json["error"]["hint"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["trian"], "No such command 'trian'. Did you mean 'train'?"),
        (["list", "--jsn"], "No such option: --jsn"),
        (["describe", "sampler"], "Missing argument"),
        (["train"], "Missing argument"),
        (["sample", "--num-samples", "many"], "Invalid value for '--num-samples'"),
        (["sample", "--seed", "-1"], "Invalid value for '--seed'"),
        (["list", "samplr"], "component kind 'samplr' is unknown; did you mean sampler?"),
        (["describe", "sampler", "malla"], "sampler 'malla' is unknown; did you mean mala?"),
        (["train", "quickstrat"], "did you mean quickstart?"),
        (["train", "a", "b"], "expected one RECIPE, got 2: a, b"),
        (["train", "train.steps=3"], "no RECIPE given"),
        (["sample", "no/such/run"], "no/such/run does not exist"),
        (["eval", "data.name=digits"], "can't override 'data'; it can override eval, sampler, sample"),
    ],
)
def test_a_usage_error_is_one_message_and_exit_code_2(cli: Any, words: list[str], message: str) -> None:
    result = cli(*words)
    assert (result.code, result.out) == (2, "")
    assert message in result.err
    assert result.err.startswith("gebm-kit: ")
    assert "Traceback" not in result.err

    result = cli(*words, "--json")
    assert (result.code, result.err) == (2, "")
    assert set(result.json) == {"schema", "error"}
    assert result.json["schema"] == 1
    assert set(result.json["error"]) == {"code", "message", "hint"}
    assert message in result.json["error"]["message"]


def test_a_group_without_command_is_a_usage_error(cli: Any) -> None:
    for group in ("recipes", "plugins"):
        result = cli(group)
        assert result.code == 2
        assert "Missing command" in result.err
        assert f"gebm-kit {group} --help" in result.err


def test_debug_shows_the_traceback(cli: Any) -> None:
    result = cli("train", "nothing", "--debug")
    assert result.code == 2
    assert "Traceback" in result.err


@pytest.mark.parametrize(
    ("error", "code", "name"),
    [
        (errors.RunFailed("full"), 1, "failed"),
        (errors.UsageError("no"), 2, "usage"),
        (errors.RecipeError("no", problems=["a", "b"]), 2, "recipe"),
        (errors.DataError("no"), 2, "data"),
        (errors.CheckpointError("no"), 2, "checkpoint"),
        (errors.PluginError("no", hint="pip install it"), 3, "plugin"),
        (errors.Interrupted("stopped", signum=2), 130, "interrupted"),
        (errors.Interrupted("stopped", signum=15), 143, "interrupted"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (ValueError("a surprise"), 1, "bug"),
    ],
)
def test_exit_codes(cli: Any, monkeypatch: pytest.MonkeyPatch, error: BaseException, code: int, name: str) -> None:
    def fail(*args: object, **rest: object) -> None:
        raise error

    monkeypatch.setattr("gebm_kit.cli.list.installed", fail)
    result = cli("list", "--json")
    assert result.code == code
    found = result.json["error"]
    assert found["code"] == name
    assert found["hint"] == getattr(error, "hint", found["hint"])
    text = cli("list")
    assert text.code == code
    assert found["message"] in text.err
    assert "Traceback" not in text.err
    if name == "bug":
        assert "this is a bug in gebm-kit" in text.err
        assert "--debug" in text.err
        assert "Traceback" in cli("list", "--debug").err


def test_sigterm_outside_training_is_143(cli: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import signal

    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr("gebm_kit.cli.list.installed", lambda: os.kill(os.getpid(), signal.SIGTERM))
    result = cli("list", "--json")
    assert result.code == 143
    assert result.json["error"]["message"] == "stopped by SIGTERM"
    assert signal.getsignal(signal.SIGTERM) is before
    monkeypatch.setattr("gebm_kit.cli.list.installed", lambda: os.kill(os.getpid(), signal.SIGINT))
    assert cli("list", "--json").json["error"]["message"] == "stopped by SIGINT"


def test_a_closed_pipe_is_no_error() -> None:
    command = f"'{sys.executable}' -m gebm_kit list | head -n 1; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert done.stdout.splitlines()[0].startswith("kind")
    assert done.stderr == ""


@pytest.mark.parametrize("words", ["list", "list --json", "recipes show quickstart"])
def test_a_pipe_that_nobody_reads_is_no_error(words: str) -> None:
    command = f"'{sys.executable}' -m gebm_kit {words} | true; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("0\n", "")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="Linux has /dev/full, a file on a full disk")
@pytest.mark.parametrize("words", [["list"], ["list", "--json"]])
def test_a_result_that_finds_the_disk_full(words: list[str]) -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run([*PROGRAM, *words], stdout=full, stderr=subprocess.PIPE, text=True)
    assert (done.returncode, done.stderr) == (1, "gebm-kit: the result can't be written: No space left on device\n")


def test_python_m_is_the_same_program() -> None:
    done = subprocess.run([*PROGRAM, "list", "sampler", "--json"], capture_output=True, text=True)
    assert done.returncode == 0
    assert {c["name"] for c in json.loads(done.stdout)["components"]} >= {"ula", "mala", "hmc"}


def test_piped_tables_are_plain_and_whole(cli: Any) -> None:
    result = cli("list")
    assert "\x1b" not in result.out
    assert not any(character in result.out for character in "│┃━")
    assert all(line == line.rstrip() for line in result.out.splitlines())
    assert "kale-dv" in result.out


def on_terminal(*words: str, **environ: str) -> tuple[int, str]:
    """Run the program with a terminal for stdout and stderr; return the exit code and the terminal's text."""
    master, slave = pty.openpty()
    env = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "100", **environ}
    process = subprocess.Popen([*PROGRAM, *words], stdin=slave, stdout=slave, stderr=slave, env=env)
    os.close(slave)
    seen = b""
    while True:
        try:
            part = os.read(master, 65536)
        except OSError:  # how Linux says that the other end is closed
            break
        if not part:
            break
        seen += part
    os.close(master)
    return process.wait(), seen.decode(errors="replace")


def test_a_terminal_gets_a_drawn_table_and_no_color_is_honoured() -> None:
    code, seen = on_terminal("list", "sampler")
    assert code == 0
    assert "│" in seen
    colours = [f"\x1b[{attribute}{c}m" for attribute in ("", "1;") for c in range(31, 38)]
    _, seen = on_terminal("--help", NO_COLOR="1")
    assert not any(colour in seen for colour in colours)
    _, seen = on_terminal("list", "sampler", TERM="dumb")
    assert "│" not in seen


def test_training_on_a_terminal_shows_a_bar(recipe: Path) -> None:
    code, seen = on_terminal("train", str(recipe), "--out", "run")
    assert code == 0, seen
    assert "6/6" in seen
    assert "steps/s" in seen
    assert "GEBM / base" in seen


def test_completion_scripts_are_there(cli: Any) -> None:
    env = {**os.environ, "_GEBM_KIT_COMPLETE": "complete_bash", "COMP_WORDS": "gebm-kit des", "COMP_CWORD": "1"}
    done = subprocess.run([*PROGRAM], env=env, capture_output=True, text=True)
    assert "describe" in done.stdout
    assert "--install-completion" in cli("--help").out


def test_every_command_is_in_its_own_file() -> None:
    folder = Path(program.__file__).parent
    for words in COMMANDS:
        assert (folder / {"eval": "evaluate"}.get(words[0], words[0])).with_suffix(".py").is_file()


def test_progress_shows_no_scalar_of_an_earlier_phase() -> None:
    """Energy-only training reports no base_loss; a report without any scalar keeps the last ones."""
    lines: list[str] = []
    watch = PlainProgress(lines.append)
    for step, scalars in enumerate([{"energy_loss": 1.0, "base_loss": 2.0}, {"energy_loss": 3.0}, {}], start=1):
        watch(Progress("train", step, 3, scalars))
    assert ["base_loss" in line for line in lines] == [True, False, False][-len(lines) :]
    assert "loss 3" in lines[-1]


def test_only_training_is_silent_for_longer_than_ten_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    """A slow stage has a line every ten seconds, however few steps that is; one that takes a moment has none."""
    now = [0.0]
    monkeypatch.setattr("gebm_kit.core.progress_lines.time.monotonic", lambda: now[0])
    lines: list[str] = []
    watch = PlainProgress(lines.append)
    for stage, pause in (("log Z", 0.01), ("sample", 3.0), ("train", 3.0)):
        for step in range(1, 11):
            now[0] += pause
            watch(Progress(stage, step, 1000))
    assert [line.split("  ")[0] for line in lines] == ["sample 3/1000", "sample 6/1000", "sample 9/1000"]


def test_a_line_tells_when_nothing_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gebm_kit.core.progress_lines.SECONDS_PER_LINE", 2)
    said = threading.Event()
    lines: list[str] = []

    def say(line: str) -> None:
        lines.append(line)
        if "still at work" in line:
            said.set()

    with PlainProgress(say) as watch:
        watch(Progress("evaluate", 3, 10))
        assert said.wait(60)
    assert "still at work after evaluate 3" in lines


def test_progress_of_unknown_length(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stage of unknown length prints a line every ten seconds, and a last one when it ends."""
    now = [0.0]
    monkeypatch.setattr("gebm_kit.core.progress_lines.time.monotonic", lambda: now[0])
    lines: list[str] = []
    watch = PlainProgress(lines.append)
    for step in range(30):
        watch(Progress("prepare", 64 * step, -1))
        now[0] += 1
    watch(Progress("prepare", 2000, 2000))
    assert [line.split("  ")[0] for line in lines] == ["prepare 640", "prepare 1280", "prepare 2000/2000"]
    assert lines[0].split("  ")[1:] == ["64 steps/s"]
    assert lines[-1].endswith("in 30 s")
