"""Trackers: what each of them holds, read back by its own reader; and what all loggers must do."""

from __future__ import annotations

import ast
import json
import math
import os
import shutil
import struct
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from gebm_kit.config.build import build
from gebm_kit.config.check import check
from gebm_kit.config.schema import ComponentNode
from gebm_kit.config.tree import parse
from gebm_kit.core.errors import PluginError, UsageError
from gebm_kit.core.plugins import discover
from gebm_kit.core.progress import GebmKitWarning
from gebm_kit.core.tracking import keep_id, tracked_id
from gebm_kit.engine.train import train
from gebm_kit.testing import check_logger

TRACKERS = ("trackio", "wandb", "mlflow")
COLUMNS, ROWS = ["value", "gebm"], [["mmd", 0.5], ["<b>kale</b>", None]]

pytestmark = pytest.mark.filterwarnings("ignore:.*(SQLite|fork|mixed|never moved)")


def make(name: str, run_directory: Path, **parameters: Any) -> Any:
    pytest.importorskip(name)
    facts = {"run_directory": run_directory, "directory": run_directory, "start_step": 0}
    return build("logger", ComponentNode(name, parameters), facts)


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    Image.new("RGB", (6, 4)).save(tmp_path / "samples.png")
    return tmp_path / "samples.png"


@pytest.fixture
def run(tmp_path: Path) -> Path:
    (tmp_path / "my run").mkdir()
    return tmp_path / "my run"


@pytest.fixture(autouse=True)
def _nothing_stays_changed() -> Iterator[None]:
    """Leave the process as it was: the environment, how it exits, and its threads."""
    before = dict(os.environ), sys.exit, sys.excepthook, threading.active_count()
    yield
    after = {name: value for name, value in os.environ.items() if before[0].get(name) != value}
    assert not [name for name in after if not name.startswith(("PYTEST_", "TORCHINDUCTOR_"))]
    assert set(before[0]) <= set(os.environ) | {"PYTEST_CURRENT_TEST"}
    assert (sys.exit, sys.excepthook) == before[1:3]
    assert threading.active_count() <= before[3]


# --- all loggers -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [r.component.name for r in discover({}, []).registry.of_kind("logger")])
def test_every_logger_does_what_loggers_must(name: str, run: Path) -> None:
    if name == "wandb":
        pytest.skip("in the test of wandb, which starts a process")
    try:
        discover({}, []).registry.get("logger", name).load().check()
    except PluginError:
        pytest.skip("not installed")
    check_logger(build("logger", ComponentNode(name), {"run_directory": run, "directory": run, "start_step": 0}))


@pytest.mark.parametrize("name", TRACKERS)
def test_a_tracker_is_imported_only_when_it_is_used(name: str) -> None:
    source = Path(sys.modules["gebm_kit"].__file__ or "").parent / "loggers" / f"{name}.py"
    for node in ast.parse(source.read_text(encoding="utf-8")).body:
        assert not (isinstance(node, ast.Import) and node.names[0].name.startswith(TRACKERS))
        assert not (isinstance(node, ast.ImportFrom) and str(node.module).startswith(TRACKERS))


@pytest.mark.parametrize("name", TRACKERS)
def test_without_the_package_nothing_begins(name: str, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    recipe = check(parse(TOY, name="toy", overrides=[f"loggers={name}"]), directory=Path())
    with pytest.raises(PluginError, match=f"needs the package {name}") as caught:
        train(recipe, out=run / "out")
    assert f"pip install 'gebm-kit[{name}]'" in caught.value.hint
    assert list(run.iterdir()) == []


# --- mlflow ----------------------------------------------------------------------------------------------------------


def mlflow_client(place: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    import mlflow

    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    return mlflow.MlflowClient(tracking_uri=place.as_uri())


def test_mlflow_reads_back_a_killed_and_resumed_run(run: Path, picture: Path) -> None:
    killed = make("mlflow", run, experiment="digits", tags=["team=a", "b"])  # never closed
    killed.log_config({"base": {"name": "mlp"}, "note": 600 * "x"})
    killed.log(1, {"kale": 0.5, "eval.gebm.mmd": 0.25})
    resumed = make("mlflow", run, experiment="digits")
    resumed.log_config({"base": {"name": "conv"}, "extra": 1})  # MLflow refuses to change a parameter
    resumed.log(2, {"kale": math.nan})
    resumed.log_image(2, "samples", picture)
    resumed.log_table(2, "evaluation", COLUMNS, ROWS)
    resumed.close()
    with pytest.MonkeyPatch.context() as patch:
        client = mlflow_client(run / "mlruns", patch)
        (found,) = client.search_runs([client.get_experiment_by_name("digits").experiment_id])
        history = client.get_metric_history(found.info.run_id, "train/kale")
    assert found.info.run_id == tracked_id(run, "mlflow")
    assert (found.info.status, found.info.run_name) == ("FINISHED", "my run")
    assert found.data.tags.items() >= {"team": "a", "b": ""}.items()
    assert found.data.params == {"base.name": "mlp", "note": 500 * "x", "extra": "1"}
    assert found.data.metrics["eval/gebm.mmd"] == 0.25
    assert (history[0].step, history[0].value) == (1, 0.5)
    assert [each.step for each in history] == [1, 2]
    artifacts = next((run / "mlruns").rglob("artifacts"))
    assert json.loads((artifacts / "recipe.json").read_text()) == {"base": {"name": "conv"}, "extra": 1}
    assert Image.open(artifacts / "figures" / "samples-0000002.png").size == (6, 4)
    table = json.loads((artifacts / "tables" / "evaluation-0000002.json").read_text())
    assert table == {"columns": COLUMNS, "data": ROWS}


def test_mlflow_begins_again_where_a_run_was_moved(run: Path) -> None:
    make("mlflow", run).close()
    moved = run.parent / "moved"
    shutil.move(run, moved)
    with pytest.warns(GebmKitWarning, match="was made in another place"):
        make("mlflow", moved).close()
    assert not run.exists()
    assert len(list((moved / "mlruns-2").rglob("artifacts"))) == 1
    assert tracked_id(moved, "mlflow") in str(next((moved / "mlruns-2").rglob("artifacts")))


# --- trackio ---------------------------------------------------------------------------------------------------------


def test_trackio_reads_back_a_killed_and_resumed_run(
    run: Path, picture: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    killed = make("trackio", run)  # never closed
    killed.log_config({"base": {"name": "mlp"}})
    killed.log(1, {"kale": 0.5, "eval.gebm.mmd": 0.25})
    other = make("trackio", run.parent, folder="shared", project="other <p>", run_name="../x")  # open at the same time
    resumed = make("trackio", run)
    resumed.log(2, {"kale": math.inf})
    resumed.log_image(2, "samples", picture)
    resumed.log_table(2, "evaluation", COLUMNS, ROWS)
    other.log(1, {"kale": 1.0})
    other.log_image(1, "samples", picture)
    resumed.close()
    other.close()
    assert capsys.readouterr().out == ""
    storage = sys.modules["trackio"].SQLiteStorage
    with resumed._working():
        (record,) = storage.get_run_records("gebm-kit")
        rows = storage.get_logs("gebm-kit", "my run", run_id=resumed.run_id)
        config = storage.get_run_config("gebm-kit", "my run", run_id=resumed.run_id)
    assert (record["id"], record["name"]) == (tracked_id(run, "trackio"), "my run")
    assert config["base"] == {"name": "mlp"}
    values = {(row["step"], name): value for row in rows for name, value in row.items()}
    assert (values[1, "train/kale"], values[1, "eval/gebm.mmd"]) == (0.5, 0.25)
    assert values[2, "train/kale"] == math.inf
    assert (run / "trackio" / "media" / values[2, "figures/samples"]["file_path"]).is_file()
    assert values[2, "tables/evaluation"]["_value"][1] == {"value": "&lt;b&gt;kale&lt;/b&gt;", "gebm": None}
    with other._working():
        assert len(storage.get_logs("other _p_", "_x", run_id=other.run_id)) == 2
    assert {path.name for path in run.parent.iterdir()} == {"my run", "shared", "samples.png", "trackers.json"}


# --- wandb -----------------------------------------------------------------------------------------------------------


def records(path: Path) -> Iterator[Any]:
    """Yield the records of wandb's file: seven bytes of header, then blocks of 32 KiB in the format of LevelDB's log."""
    from wandb.proto.wandb_internal_pb2 import Record

    content, at, whole = path.read_bytes(), 7, b""
    while at + 7 <= len(content):
        if at % 32768 > 32768 - 7:
            at += 32768 - at % 32768
            continue
        _, length, kind = struct.unpack_from("<IHB", content, at)
        whole += content[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # a whole record, or the last part of one
            yield Record.FromString(whole)
            whole = b""


def test_wandb_offline_holds_every_value_of_a_resumed_run(run: Path, picture: Path, capfd: Any) -> None:
    first = make("wandb", run, project="digits <p>", tags=["a"])
    check_logger(first)
    again = make("wandb", run, project="digits <p>")
    again.log_config({"base": {"name": "mlp"}})
    again.log(2, {"kale": 0.5, "eval.gebm.mmd": 0.25})
    again.log_image(2, "samples", picture)
    again.log_table(2, "evaluation", COLUMNS, ROWS)
    again.close()
    assert again.run_id == first.run_id == tracked_id(run, "wandb")
    found = [each for file in (run / "wandb").rglob(f"run-{again.run_id}.wandb") for each in records(file)]
    runs = [each.run for each in found if each.HasField("run")]
    assert {(each.run_id, each.project, each.display_name) for each in runs} == {(again.run_id, "digits _p_", "my run")}
    rows = [
        {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in each.history.item}
        for each in found
        if each.HasField("history")
    ]
    assert sorted(row["step"] for row in rows if "train/kale" in row) == [1, 2]
    assert any(row.get("eval/gebm.mmd") == 0.25 and row["step"] == 2 for row in rows)
    (table,) = [file for file in run.rglob("*.table.json") if "kale" in file.read_text()]
    assert json.loads(table.read_text()) == {"columns": COLUMNS, "data": ROWS}
    assert any(Image.open(file).size == (6, 4) for file in run.rglob("samples_*.png"))
    assert not [path for path in run.rglob("*") if path.is_symlink()]
    assert capfd.readouterr().out == ""


def test_wandb_online_without_a_key_is_an_error_and_no_question(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.delenv("WANDB_BASE_URL", raising=False)
    monkeypatch.setenv("NETRC", str(run / "none"))
    with pytest.raises(UsageError, match="mode=online, but there is no key for api.wandb.ai"):
        make("wandb", run, mode="online")
    assert list(run.iterdir()) == []


# --- in a run --------------------------------------------------------------------------------------------------------

TOY = """\
schema: 1
data: {name: eight-gaussians, num_train: 100, num_valid: 50, num_test: 50}
base: {name: mlp, latent_dim: 2, hidden: [8]}
energy: {name: mlp, hidden: [8]}
loss: {name: kale}
train: {steps: 2, energy_steps: 1, start_steps: 0, batch_size: 16, log_every: 1}
ema: {decay: 0}
sampler: {name: mala, step_size: 0.05}
sample: {num_samples: 40, num_chains: 20, warmup: 4, steps: 4, thin: 2}
eval: {metrics: [mmd], num_samples: 40, num_sets: 2}
device: cpu
"""


@pytest.mark.usefixtures("no_pictures")
def test_several_trackers_at_once_hold_what_metrics_jsonl_holds(run: Path, capfd: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("trackio")
    pytest.importorskip("mlflow")
    recipe = check(parse(TOY, name="toy", overrides=["loggers=[trackio, mlflow]"]), directory=Path())
    found = train(recipe, out=run / "out")
    assert capfd.readouterr().out == ""
    names = {name for row in found.metrics() for name in row if "." in name}
    kept = {f"eval/{path.name}" for path in (run / "out" / "mlruns").rglob("metrics/eval/*")}
    assert kept == {name.replace(".", "/", 1) for name in names}
    with make("trackio", run / "out")._working():
        storage = sys.modules["trackio"].SQLiteStorage
        rows = storage.get_logs("gebm-kit", "out", run_id=tracked_id(run / "out", "trackio"))
    assert kept <= {name for row in rows for name in row}
    assert any("tables/evaluation" in row for row in rows)
    keep_id(run / "out", "mlflow", "gone")  # the store does not know it: the run is begun again
    make("mlflow", run / "out").close()
    assert tracked_id(run / "out", "mlflow") != "gone"
