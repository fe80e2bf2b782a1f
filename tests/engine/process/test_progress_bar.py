"""Progress in Python: silent in scripts, a bar on a terminal and in a notebook, forced and forbidden, and by a callback."""

from __future__ import annotations

import io
import os
import pty
import re
import subprocess
import sys
from typing import Any

import pytest
from torch import nn

import gebm_kit as gk
from gebm_kit.core.errors import UsageError
from gebm_kit.core.progress import STAGES, Progress, ignore
from gebm_kit.core.progress_notebook import NotebookBars
from gebm_kit.engine.process.progress_bar import progress_shown
from gebm_kit.testing.targets import IdentityBase

SCRIPT = """
import warnings
warnings.simplefilter("ignore")
import gebm_kit as gk
from torch import nn
from gebm_kit.testing.targets import IdentityBase
model = gk.GEBM(IdentityBase(2), nn.Sequential(nn.Linear(2, 1), nn.Flatten(0)))
gk.sample(model, "mala", num_samples=40, num_chains=20, warmup=200, steps=300{more})
print("done")
"""


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def report_ten() -> Any:
    return [Progress("sample", step, 10, {"acceptance": 0.5}) for step in range(1, 11)]


def test_scripts_stay_silent(capsys: Any) -> None:
    for progress in (None, False):
        with progress_shown(progress, None) as report:
            assert report is ignore
    assert capsys.readouterr().err == ""


def test_forced_lines_are_printed_where_there_is_no_terminal(capsys: Any) -> None:
    with progress_shown(True, None) as report:
        for one in report_ten():
            report(one)
    assert re.search(r"gebm-kit: sample 10/10  acceptance 0.5", (output := capsys.readouterr()).err)
    assert output.out == ""


@pytest.mark.parametrize("progress", [None, True])
def test_a_bar_on_a_terminal(monkeypatch: pytest.MonkeyPatch, capsys: Any, progress: bool | None) -> None:
    stream = Terminal()
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setenv("TERM", "xterm")
    with progress_shown(progress, None) as report:
        for one in report_ten():
            report(one)
    assert "sample" in stream.getvalue()
    assert capsys.readouterr().out == ""
    stream.truncate(0)
    monkeypatch.setenv("TERM", "dumb")
    with progress_shown(None, None) as report:
        assert report is ignore


def test_false_silences_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = Terminal()
    monkeypatch.setattr(sys, "stderr", stream)
    with progress_shown(False, None) as report:
        report(Progress("sample", 1, 2))
    assert stream.getvalue() == ""


@pytest.mark.parametrize("progress", [None, True, False])
def test_a_callback_takes_precedence(capsys: Any, progress: bool | None) -> None:
    seen: list[Progress] = []
    with progress_shown(progress, seen.append) as report:
        report(Progress("train", 1, 2))
    assert seen == [Progress("train", 1, 2)]
    assert capsys.readouterr().err == ""


def test_other_ranks_are_silent(capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank, silent in (("0", False), ("1", True)):
        monkeypatch.setenv("RANK", rank)
        with progress_shown(True, None) as report:
            assert (report is ignore) == silent


@pytest.mark.parametrize("progress", ["yes", 1, 0, "auto", print])
def test_what_progress_may_be(progress: Any) -> None:
    model = gk.GEBM(IdentityBase(2), nn.Flatten(0))
    calls = {
        "train": lambda: gk.train("quickstart", progress=progress),
        "sample": lambda: gk.sample(model, progress=progress),
        "evaluate": lambda: gk.evaluate(model, progress=progress),
        "score": lambda: gk.score(model, None, progress=progress),
        "log_density": lambda: gk.log_density(model, None, progress=progress),
        "trace_quality": lambda: gk.trace_quality(model, progress=progress),
        "tilt": lambda: gk.tilt(model, print, progress=progress),
    }
    for call in calls.values():
        with pytest.raises(UsageError, match=r"progress must be True, False or None"):
            call()


def test_a_script_shows_bars_on_a_terminal_alone() -> None:
    command = [sys.executable, "-c", SCRIPT.format(more="")]
    piped = subprocess.run(command, capture_output=True, text=True, check=True)
    assert (piped.stdout, piped.stderr) == ("done\n", "")
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=theirs, text=True, env={**os.environ, "TERM": "xterm"}
    ) as process:
        os.close(theirs)
        shown = b""
        while True:
            try:
                part = os.read(ours, 4096)
            except OSError:  # the other end is closed
                break
            if not part:
                break
            shown += part
        assert process.stdout is not None
        assert process.stdout.read() == "done\n"
    os.close(ours)
    assert process.returncode == 0
    assert b"warmup" in shown
    assert b"sample" in shown


def test_stages_are_listed() -> None:
    seen: set[str] = set()
    model = gk.GEBM(IdentityBase(2), nn.Sequential(nn.Linear(2, 1), nn.Flatten(0)))
    rows = IdentityBase(2).sample_prior(200, _generator())
    few: dict[str, Any] = {"num_samples": 40, "num_sets": 2, "on_progress": lambda report: seen.add(report.stage)}
    gk.evaluate(model, data=rows, metrics=["mmd"], **few)
    gk.score(model, rows, on_progress=few["on_progress"])
    gk.trace_quality(model, "mmd", data=rows, at_steps=[0, 2], **few)
    assert {"base", "calibrate", "sample", "evaluate", "log Z", "rows", "trace"} <= seen <= set(STAGES)


def test_a_classifier_that_is_trained_for_features_reports_its_steps(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from gebm_kit.config.build import build
    from gebm_kit.config.schema import ComponentNode

    monkeypatch.setenv("GEBM_KIT_CACHE", str(tmp_path))
    seen: list[Progress] = []
    digits = build("dataset", ComponentNode("digits"), {})
    base = build("base", ComponentNode("mlp", {"latent_dim": 2, "hidden": [8]}), {"data_shape": (1, 8, 8)})
    model = gk.GEBM(base, nn.Sequential(nn.Flatten(), nn.Linear(64, 1), nn.Flatten(0)))
    gk.tilt(model, model.energy, data=digits, betas=[1], num_samples=60, num_base=64, on_progress=seen.append)
    fits = [report for report in seen if report.stage == "fit"]
    assert fits[-1].step == fits[-1].total == len(fits) > 10


def _generator() -> Any:
    import torch

    return torch.Generator().manual_seed(0)


def test_bars_of_a_notebook_are_one_output(monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[str] = []

    class Display:
        def HTML(self, text: str) -> str:  # IPython's name
            return text

        def display(self, content: str, display_id: bool) -> Display:
            shown.append(content)
            return self

        def update(self, content: str) -> None:
            shown.append(content)

    monkeypatch.setattr("gebm_kit.core.progress_notebook.SECONDS_PER_UPDATE", 0.0)
    monkeypatch.setitem(sys.modules, "IPython.display", Display())
    with NotebookBars() as bars:
        for one in report_ten():
            bars(one)
        bars(Progress("<script>", 3, -1))
    assert len(shown) == 12
    assert 'value="10" max="10"' in shown[9]
    assert "acceptance 0.5" in shown[0]
    assert "<script" not in shown[10]
    assert "sample 10/10" in shown[11]


def test_a_notebook_shows_bars_and_tables() -> None:
    import nbformat
    from nbclient import NotebookClient

    code = SCRIPT.format(more="").replace("gk.sample(", "draws = gk.sample(") + "draws"
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code)])
    NotebookClient(notebook, timeout=120, kernel_name="python3").execute()
    outputs = notebook.cells[0].outputs
    pages = [output["data"]["text/html"] for output in outputs if "text/html" in output.get("data", {})]
    assert "sample " in pages[0]
    assert "<table" in pages[-1]
    assert not [output for output in outputs if output.get("name") == "stderr"]
