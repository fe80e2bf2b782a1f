"""Loggers: every run writes metrics.jsonl, a recipe names others, and no logger's failure stops a run."""

from __future__ import annotations

import json
import math
import os
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest

from gebm_kit.config.build import resolved
from gebm_kit.config.check import check
from gebm_kit.config.schema import Recipe
from gebm_kit.config.tree import parse
from gebm_kit.core.components import Component, Registered
from gebm_kit.core.errors import Interrupted, PluginError, RecipeError, RunFailed, UsageError
from gebm_kit.core.interfaces import Logger
from gebm_kit.core.plugins import installed
from gebm_kit.core.progress import GebmKitWarning
from gebm_kit.engine.run_directory.log_rows import read_rows as load_rows
from gebm_kit.engine.run_directory.run import load_run
from gebm_kit.engine.train import train
from gebm_kit.engine.training.dry_run import plan
from gebm_kit.engine.training.loggers import MAX_FAILURES, Loggers, open_loggers

TOY = """\
schema: 1
data: {name: eight-gaussians, num_train: 100, num_valid: 50, num_test: 50}
base: {name: mlp, latent_dim: 2, hidden: [8]}
energy: {name: mlp, hidden: [8]}
loss: {name: kale}
train: {steps: 8, energy_steps: 1, start_steps: 0, batch_size: 16, log_every: 1, checkpoint_every: 4}
ema: {decay: 0}
sampler: {name: mala, step_size: 0.05}
sample: {num_samples: 40, num_chains: 20, warmup: 4, steps: 4, thin: 2}
eval: {metrics: [mmd], num_samples: 40, num_sets: 2}
device: cpu
"""

PLUGIN = """\
import json
from pathlib import Path
from typing import Annotated

from gebm_kit.core.components import Injected
from gebm_kit.core.interfaces import Logger


class Diary(Logger):
    def __init__(self, fails: str = "", *, run_directory: Annotated[Path, Injected], start_step: Annotated[int, Injected]):
        self.fails, self.file = fails, open(run_directory / "diary.txt", "a")
        self.note("init", start_step)

    @classmethod
    def check(cls):
        pass

    def note(self, method, *values):
        if method == self.fails:
            raise ConnectionError("the server is gone")
        self.file.write(json.dumps([method, *values]) + "\\n")

    def log(self, step, scalars):
        self.note("log", step, sorted(scalars))

    def log_config(self, config):
        self.note("log_config", config["base"]["name"])

    def log_image(self, step, name, path):
        self.note("log_image", step, name, path.exists())

    def close(self):
        self.file.close()
        if self.fails == "close":
            raise ConnectionError("the server is gone")
"""

pytestmark = [
    pytest.mark.filterwarnings("ignore:the chains have not mixed"),
    pytest.mark.filterwarnings("ignore:.*chains never moved"),
]


@pytest.fixture
def diary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Install a plugin with the logger ``diary``."""
    (tmp_path / "diary_plugin.py").write_text(PLUGIN)
    monkeypatch.syspath_prepend(tmp_path)
    record = Registered(Component("logger", "diary", "diary_plugin:Diary", "A diary"), "gebm-kit-diary", "1")
    monkeypatch.setitem(installed().registry._records, ("logger", "diary"), [record])
    yield
    sys.modules.pop("diary_plugin", None)


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    def draw(folder: Path, **_: object) -> list[Path]:
        (folder / "curves.png").write_bytes(b"")
        return [folder / "curves.png"]

    monkeypatch.setattr("gebm_kit.engine.evaluation.evaluation_files.draw_all", draw)


def toy(*overrides: str) -> Recipe:
    return check(parse(TOY, name="toy", overrides=overrides), directory=Path())


def diary_of(run: Path) -> list[list[object]]:
    return [json.loads(line) for line in (run / "diary.txt").read_text().splitlines()]


# --- in a recipe -----------------------------------------------------------------------------------------------------


def test_a_recipe_lists_loggers_and_every_spelling_of_none_means_jsonl_alone(diary: None) -> None:
    assert toy().loggers == toy("loggers=null").loggers == toy("loggers=[]").loggers == ()
    assert [node.name for node in toy("loggers=diary").loggers] == ["diary"]
    assert resolved(toy("loggers=[{name: diary, fails: log}]"))["loggers"] == [{"name": "diary", "fails": "log"}]
    for override, expected in (
        ("loggers=[dairy]", "loggers\\[0\\]: logger 'dairy' is unknown; did you mean diary"),
        ("loggers=[diary, diary]", "loggers\\[1\\]: logger 'diary' is listed twice"),
        ("loggers=[{name: diary, fials: log}]", "did you mean fails"),
    ):
        with pytest.raises(RecipeError, match=expected):
            toy(override)


def test_every_logger_gets_everything_once(diary: None, tmp_path: Path) -> None:
    run = train(toy("loggers=[jsonl, diary]", "train.eval_every=4"), out=tmp_path / "run")
    told = diary_of(run.path)
    assert told[:2] == [["init", 0], ["log_config", "mlp"]]
    rows = run.metrics()
    assert [line[1:] for line in told if line[0] == "log"] == [[r.pop("step"), sorted(r)] for r in rows]
    assert len([row for row in rows if "energy_loss" in row]) == 8
    assert [line for line in told if line[0] == "log_image"] == [
        ["log_image", 4, "curves", True], ["log_image", 8, "curves", True],
    ]  # fmt: skip


def test_a_resumed_run_tells_where_it_goes_on_and_may_change_its_loggers(diary: None, tmp_path: Path) -> None:
    def stop(progress: object) -> None:
        if getattr(progress, "step", 0) == 6:
            raise Interrupted("stopped", signum=2)

    with pytest.raises(Interrupted):
        train(toy(), out=tmp_path / "run", on_progress=stop)
    run = train(toy("loggers=[diary]"), out=tmp_path / "run", resume=True)
    told = diary_of(run.path)
    assert told[0] == ["init", 4]
    assert [line[1] for line in told if line[0] == "log"] == [5, 6, 7, 8, 8]
    assert [row["step"] for row in run.metrics()] == [1, 2, 3, 4, 5, 6, 7, 8, 8]


def test_a_logger_that_takes_tables_gets_copies_of_them() -> None:
    class Plain(Logger):
        def log(self, step: int, scalars: object) -> None:
            raise AssertionError

    class Tables(Plain):
        seen: ClassVar[list[object]] = []

        def log_table(self, step: int, name: str, columns: Any, rows: Any) -> None:
            self.seen.append((step, name, list(columns), [list(row) for row in rows]))
            columns.clear()
            rows[0].clear()

    loggers = Loggers()
    for name, logger in (("plain", Plain()), ("one", Tables()), ("two", Tables())):
        loggers.add(name, logger)
    loggers.log_table(3, "evaluation", ["value", "gebm"], [["mmd", None]])
    assert Tables.seen == 2 * [(3, "evaluation", ["value", "gebm"], [["mmd", None]])]
    assert [one.calls for one in loggers._guarded] == [0, 1, 1]


# --- failures --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["log", "log_config", "log_image", "close"])
def test_whatever_a_logger_raises_the_run_is_the_same(diary: None, tmp_path: Path, method: str) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run = train(toy(f"loggers=[{{name: diary, fails: {method}}}]"), out=tmp_path / "run")
    assert run.state == "finished"
    assert len(run.metrics()) == 9
    said = [str(w.message) for w in caught if issubclass(w.category, GebmKitWarning) and "logger" in str(w.message)]
    assert "logger 'diary' failed" in said[0]
    assert "ConnectionError: the server is gone" in said[0]
    # after MAX_FAILURES failures in a row the logger is no longer called, so it misses its picture too
    missed = {"log": "10 of 11", "log_config": "1 of 11", "log_image": "1 of 11"}
    assert said[1:] == ([f"logger 'diary' missed {missed[method]} records"] if method in missed else [])


def test_a_logger_that_cannot_start_is_an_error_before_training(diary: None, tmp_path: Path) -> None:
    with pytest.raises(
        PluginError, match="logger 'diary' can't be started: ConnectionError: the server is gone"
    ) as caught:
        train(toy("loggers=[{name: diary, fails: init}]"), out=tmp_path / "run")
    assert "loggers=[]" in caught.value.hint
    assert load_run(tmp_path / "run").state == "failed"
    assert load_run(tmp_path / "run").metrics() == []
    assert train(toy(), out=tmp_path / "run", resume=True).state == "finished"


def test_a_logger_without_its_package_leaves_nothing_behind(
    diary: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import diary_plugin  # type: ignore[import-not-found]

    def check(cls: type[Logger]) -> None:
        raise PluginError("logger 'diary' needs the package diaries")

    monkeypatch.setattr(diary_plugin.Diary, "check", classmethod(check))
    with pytest.raises(PluginError, match="needs the package diaries"):
        train(toy("loggers=[diary]"), out=tmp_path / "run")
    with pytest.raises(PluginError, match="needs the package diaries"):
        plan(toy("loggers=[diary]"))
    assert not (tmp_path / "run").exists()


def test_training_that_goes_back_logs_no_step_twice(
    diary: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    run.mkdir()
    loggers = open_loggers(toy("loggers=[diary]"), run, 0)
    for step in (1, 2, 3, 4):
        loggers.log(step, {"kale": math.nan})
    loggers.go_back(2)
    loggers.log(3, {"kale": 1.0})
    loggers.close()
    assert [(row["step"], row["kale"]) for row in load_rows(run)] == [(1, None), (2, None), (3, 1.0)]
    assert diary_of(run)[-3:] == [["init", 2], ["log_config", "mlp"], ["log", 3, ["kale"]]]

    import diary_plugin

    def gone(self: object, fails: str = "") -> None:
        raise ConnectionError("the server is gone")

    loggers = open_loggers(toy("loggers=[diary]"), run, 3)
    monkeypatch.setattr(diary_plugin.Diary, "__init__", gone)
    with pytest.warns(
        GebmKitWarning,
        match="logger 'diary' can't be started again: ConnectionError: .*; training continues without it",
    ):
        loggers.go_back(1)
    loggers.log(2, {"kale": 2.0})
    loggers.close()
    assert [row["step"] for row in load_rows(run)] == [1, 2]
    Loggers().go_back(1)  # the loggers of a rank that writes nothing


class Moody(Logger):
    """A logger that fails as the list says: each call takes one entry."""

    def __init__(self, moods: list[BaseException | None]) -> None:
        self.moods, self.seen, self.closed = moods, list[int](), False

    def log(self, step: int, scalars: object) -> None:
        self.seen.append(step)
        mood = self.moods.pop(0) if self.moods else None
        if mood is not None:
            raise mood

    def close(self) -> None:
        self.closed = True


def logged(logger: Logger, name: str = "moody", steps: int = 8) -> list[str]:
    """Return the warnings from logging ``steps`` rows."""
    loggers = Loggers()
    loggers.add(name, logger)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for step in range(steps):
            loggers.log(step, {"kale": 0.0})
        loggers.close()
    return [str(w.message) for w in caught]


def test_one_failure_is_forgiven_and_too_many_in_a_row_are_not() -> None:
    ok, bad = None, OSError("busy")
    logger = Moody([bad, ok, bad, bad, ok])
    first, last = logged(logger)
    assert "failed at step 0: OSError: busy" in first
    assert last.endswith("missed 3 of 8 records")
    assert (len(logger.seen), logger.closed) == (8, True)
    logger = Moody([ok, *[bad] * 7])
    assert logged(logger)[1].endswith("missed 7 of 8 records")
    assert (len(logger.seen), logger.closed) == (1 + MAX_FAILURES, True)
    assert logged(Moody([SystemExit(1)]))[0].startswith("logger 'moody' failed at step 0: SystemExit: 1")
    assert logged(Moody([])) == []
    logger = Moody([bad] * 7)
    logged(logger, "jsonl")  # the run's own file is tried every time
    assert len(logger.seen) == 8


def test_stopping_is_not_a_failure_of_the_logger() -> None:
    with pytest.raises(Interrupted):
        logged(Moody([Interrupted("stopped by SIGINT", signum=2)]))


def test_metrics_that_do_not_fit_on_the_disk_are_counted(tmp_path: Path) -> None:
    loggers = open_loggers(toy(), tmp_path, 0)
    full = os.open("/dev/full", os.O_WRONLY)
    writer: Any = loggers._guarded[0].logger
    os.dup2(full, writer._file.fileno())
    os.close(full)
    with pytest.warns(
        GebmKitWarning, match=r"logger 'jsonl' failed at step 1: .*metrics.jsonl can't be written to: No space"
    ):
        loggers.log(1, {"kale": 0.0})
    loggers.log(2, {"kale": 0.0})
    with pytest.warns(GebmKitWarning, match=r"logger 'jsonl' missed 2 of 3 records"):
        loggers.close()
    with pytest.raises(RunFailed, match="can't be opened"):
        open_loggers(toy(), tmp_path / "missing", 0)


@pytest.mark.parametrize("place", ["metrics.jsonl", "tensorboard"])
def test_no_logger_writes_through_a_link(tmp_path: Path, place: str) -> None:
    """A run that came from somebody else could lead to any file of the user's."""
    run, theirs = tmp_path / "run", tmp_path / "theirs"
    run.mkdir()
    for name in ("resolved.yaml", "status.json"):
        (run / name).write_text("{}")
    if place == "tensorboard":
        theirs.mkdir()
    else:
        theirs.write_text("mine")
    (run / place).symlink_to(theirs)
    with pytest.raises(UsageError, match="is a symbolic link"):
        open_loggers(toy("loggers=[tensorboard]"), run, 0)
    assert list(theirs.iterdir()) == [] if place == "tensorboard" else theirs.read_text() == "mine"
