"""Comparison of runs: differences, comparable and incomparable values, and the picture."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image

from gebm_kit.core.errors import CheckpointError, UsageError
from gebm_kit.engine.evaluation.comparison import ABSENT, compare, differences, shortest_ends
from gebm_kit.engine.figures.comparison_figure import draw_comparison

PROTOCOL = {
    "samples": 500,
    "reference": 100,
    "features_checksum": "a" * 64,
    "bandwidth": 6.1,
    "sets": 3,
    "held_out": 50,
}


def estimate(value: float) -> dict[str, Any]:
    return {"value": value, "low": value - 0.1, "high": value + 0.1, "n": 3}


def made(path: Path, *, value: float | None = 0.5, recipe: Any = None, looks: bool = False, **protocol: Any) -> Path:
    """Write a run directory without weights; ``value``: result of its evaluation, None: no evaluation."""
    path.mkdir(parents=True)
    resolved = {"data": {"name": "digits"}, "loss": {"name": "kale"}, "train": {"steps": 60, "seed": 0}}
    (path / "env.json").write_text("{}")
    (path / "resolved.yaml").write_text(yaml.safe_dump(resolved | (recipe or {})))
    (path / "status.json").write_text(json.dumps({"recipe": "r", "state": "finished", "step": 60, "seconds": 9.0}))
    rows: list[dict[str, Any]] = [{"step": s, "energy_loss": -0.01 * s, "kale": 0.01 * s} for s in range(0, 61, 10)]
    rows[3]["kale"] = None
    if looks:
        rows += [{"step": s, "eval.gebm.mmd": 1.0 / s, "eval.base.mmd": 2.0 / s} for s in (20, 40)]
    (path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    if value is not None:
        metrics = {"base": {"mmd": estimate(0.7)}, "gebm": {"mmd": estimate(value)}, "ratio": {"mmd": estimate(0.8)}}
        diagnostics = {"divergences": 4, "acceptance": 0.7, "problems": ["4 steps diverged"]}
        evaluation = {
            "metrics": metrics, "protocol": {"mmd": PROTOCOL | protocol}, "kale_test": 1.5,
            "log_partition": {"value": -2.0}, "inverse_temperature": 1.0, "diagnostics": diagnostics,
        }  # fmt: skip
        (path / "evaluation.json").write_text(json.dumps(evaluation))
    return path


def test_only_keys_that_differ_are_listed_lists_of_components_entry_by_entry() -> None:
    first = {"a": {"b": 1, "c": [1, 2]}, "list": [{"name": "x", "p": 1}], "same": True, "none": None}
    second = {"a": {"b": 1, "c": [1, 3]}, "list": [{"name": "x", "p": 2}, {"name": "y"}], "same": True, "none": None}
    assert differences([first, second, first]) == {
        "a.c": ([1, 2], [1, 3], [1, 2]),
        "list[0].p": (1, 2, 1),
        "list[1].name": (ABSENT, "y", ABSENT),
    }
    assert differences([first, first]) == {}
    assert differences([{"loggers": []}, {"loggers": [{"name": "x"}]}]) == {"loggers[0].name": (ABSENT, "x")}


def test_labels_are_the_shortest_ends_that_differ() -> None:
    assert shortest_ends([Path("/r/a"), Path("/r/b")]) == ("a", "b")
    assert shortest_ends([Path("/r/x/a"), Path("/r/y/a"), Path("/r/y/b")]) == ("x/a", "y/a", "b")
    assert shortest_ends([Path("/a"), Path("/r/a")]) == ("/a", "r/a")


def test_runs_of_one_protocol_are_comparable(tmp_path: Path) -> None:
    a = made(tmp_path / "a", value=0.5)
    skipped = {"energy": {"total": 3, "value": "nan"}, "base": {"total": 1, "value": "0.0"}}
    (a / "checkpoints" / "step-0000060").mkdir(parents=True)
    state = {"schema": 1, "state": {"non_finite": skipped, "restores": 2}}
    (a / "checkpoints" / "step-0000060" / "state.json").write_text(json.dumps(state))
    b = made(
        tmp_path / "b", value=0.3, recipe={"train": {"steps": 60, "seed": 1}}, sets=10, bandwidth=6.1 * (1 + 1e-12)
    )
    found = compare([a, b])
    assert found.differences == {"train.seed": (0, 1)}
    (metric,) = found.metrics
    assert metric.name == "mmd"
    assert metric.reasons == ()
    assert [v["value"] for v in metric.columns["gebm"] if v] == [0.5, 0.3]
    assert metric.columns["data"] == (None, None)
    first = found.outcomes()[0]
    assert (first["label"], first["step"], first["seconds"], first["divergences"]) == ("a", 60, 9.0, 4)
    assert first["problems"] == ["4 steps diverged"]
    assert [(o["skipped_updates"], o["restores"]) for o in found.outcomes()] == [(4, 2), (None, None)]
    assert json.loads(json.dumps(found.as_dict()))["metrics"]["mmd"]["comparable"] is True


@pytest.mark.parametrize(
    ("other", "reason"),
    [
        ({"samples": 400}, "samples: 500, 400"),
        ({"features_checksum": "b" * 64}, "features_checksum: aaaaaaaa, bbbbbbbb"),
        ({"bandwidth": 6.2}, "bandwidth: 6.1, 6.2"),
        ({"extrapolated": True}, "extrapolated: -, True"),
        ({"recipe": {"data": {"name": "two-moons"}}}, "data.name: digits, two-moons"),
    ],
)
def test_another_protocol_or_other_data_are_marked(tmp_path: Path, other: dict[str, Any], reason: str) -> None:
    found = compare([made(tmp_path / "a"), made(tmp_path / "b", **other)])
    assert found.metrics[0].reasons == (reason,)
    assert found.as_dict()["metrics"]["mmd"]["reasons"] == [reason]


def test_a_parameter_that_an_older_run_lacks_is_no_difference_while_it_is_off(tmp_path: Path) -> None:
    new = made(tmp_path / "b", recipe={"data": {"name": "digits", "labels": False, "column": None}})
    assert compare([made(tmp_path / "a"), new]).metrics[0].reasons == ()
    on = made(tmp_path / "c", recipe={"data": {"name": "digits", "class_weights": "uniform"}})
    assert compare([tmp_path / "a", on]).metrics[0].reasons == ("data.class_weights: -, uniform",)


def test_a_value_of_a_look_during_training_is_marked(tmp_path: Path) -> None:
    found = compare([made(tmp_path / "a"), made(tmp_path / "b", value=None, looks=True)])
    (metric,) = found.metrics
    assert "b was not evaluated after training" in metric.reasons[0]
    assert metric.columns["gebm"][1] == {"value": 1 / 40, "low": None, "high": None, "n": None}
    assert found.outcomes()[1]["divergences"] is None


def test_what_can_not_be_compared(tmp_path: Path) -> None:
    a, b = made(tmp_path / "a"), made(tmp_path / "b")
    with pytest.raises(UsageError, match="at least two runs"):
        compare([a])
    with pytest.raises(UsageError, match="is named twice"):
        compare([a, b, tmp_path / "b" / ".." / "a"])
    with pytest.raises(CheckpointError, match="nowhere does not exist"):
        compare([a, tmp_path / "nowhere"])
    (b / "status.json").write_text("{")
    with pytest.raises(CheckpointError, match="status.json is missing or damaged"):
        compare([a, b])


@pytest.mark.pictures
@pytest.mark.parametrize("kind", ["curves and scores", "looks too", "many", "nothing at all", "other losses"])
def test_the_picture(tmp_path: Path, kind: str) -> None:
    count = 9 if kind == "many" else 2
    paths = [made(tmp_path / f"run-{i}", looks=kind == "looks too") for i in range(count)]
    if kind == "other losses":
        paths.append(made(tmp_path / "logistic", samples=3, recipe={"loss": {"name": "logistic"}}))
    if kind == "nothing at all":
        for path in paths:
            (path / "metrics.jsonl").unlink()
            (path / "evaluation.json").unlink()
    with Image.open(draw_comparison(tmp_path / "compare.png", compare(paths))) as picture:
        assert min(picture.size) > 300


@pytest.mark.pictures
def test_panels_say_what_they_show(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Curves hold the logged values, scores their intervals, and titles say what can't be compared."""
    caught: list[Any] = []
    monkeypatch.setattr(
        "gebm_kit.engine.figures.comparison_figure.save_figure", lambda figure, path: caught.append(figure) or path
    )
    paths = [
        made(tmp_path / "a", looks=True),
        made(tmp_path / "b", samples=3, recipe={"loss": {"name": "logistic"}}),
    ]
    draw_comparison(tmp_path / "compare.png", compare(paths))
    panels = {axes.get_title().splitlines()[0]: axes for axes in caught[0].axes if axes.get_title()}
    assert list(panels) == [
        "energy loss", "KALE (nats)", "mmd (NOT comparable), GEBM in training", "mmd (NOT comparable)",
    ]  # fmt: skip
    assert "losses differ" in panels["energy loss"].get_title()
    assert "losses differ" not in panels["KALE (nats)"].get_title()
    lines = [line for line in panels["energy loss"].get_lines() if len(line.get_xdata())]
    assert [list(line.get_ydata()) for line in lines] == [[-0.01 * s for s in range(0, 61, 10)]] * 2
    assert [text.get_text() for text in panels["mmd (NOT comparable)"].get_xticklabels()] == ["a", "b"]
