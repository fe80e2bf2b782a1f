"""Pages without a model: answers and sections from the files of a run, whatever they hold."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import gebm_kit as gk
from gebm_kit.core.errors import CheckpointError
from gebm_kit.engine.evaluation.kept_draws import FILE, read_kept_draws
from gebm_kit.engine.reporting.facts import facts_of
from gebm_kit.engine.reporting.material import Material
from gebm_kit.engine.reporting.page import Page
from gebm_kit.engine.reporting.render import html_of
from gebm_kit.engine.reporting.run_page import run_page
from gebm_kit.engine.reporting.words import interval, listed, number, plain, seconds

pytestmark = pytest.mark.pictures  # charts are drawn, not left blank

RESOLVED = """\
schema: 1
data: {name: digits}
base: {name: mlp}
energy: {name: mlp}
train: {steps: 40, part: base-then-both, pretrain: {steps: 20}, final: {steps: 10}, seed: 3}
"""


def estimate(value: float, low: float | None = None, high: float | None = None) -> dict[str, Any]:
    return {"value": value, "low": low, "high": high, "n": 4}


def evaluation(**changes: Any) -> dict[str, Any]:
    metrics = {
        "base": {"mmd": estimate(0.2, 0.1, 0.3)},
        "gebm": {"mmd": estimate(0.1, 0.05, 0.15)},
        "ratio": {"mmd": estimate(0.5, 0.4, 0.6)},
    }
    diagnostics = {
        "sampler": "hmc", "num_samples": 100, "num_chains": 100, "warmup_steps": 10, "steps": 20, "acceptance": 0.7,
        "divergences": 0, "rhat_max": 1.01, "nested_rhat_max": 1.01, "ess_min": 500.0, "stuck_chains": 0,
    }  # fmt: skip
    found = {
        "metrics": metrics,
        "protocol": {"mmd": {"samples": 100, "lower_is_better": True}},
        "diagnostics": diagnostics,
        "inverse_temperature": 1.0,
        "checkpoint": "step-0000070",
    }
    return found | changes


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "resolved.yaml").write_text(RESOLVED)
    (folder / "recipe.yaml").write_text(RESOLVED)
    (folder / "env.json").write_text(json.dumps({"directory": str(tmp_path), "torch": "2"}))
    (folder / "status.json").write_text(json.dumps({"recipe": "made", "state": "finished", "step": 70}))
    rows = [{"step": step, "kale": 0.1 * step, "base_loss": -0.1 * step} for step in range(1, 71, 3)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def page_of(run: Path, found: dict[str, Any] | None = None) -> Page:
    if found is not None:
        (run / "evaluation.json").write_text(json.dumps(found))
    return run_page(facts_of(run), Material())


def answers(page: Page) -> dict[str, tuple[str, str]]:
    return {question: (answer.word, answer.text) for question, answer in page.answers}


def test_the_five_answers(run: Path) -> None:
    found = answers(page_of(run, evaluation()))
    assert found["Is the GEBM better than its base?"] == ("Yes", "The GEBM against its base: better by mmd.")
    assert "50% lower; ratio 0.5 (0.4 to 0.6)" in found["By how much?"][1]
    assert found["Can the draws be trusted?"] == (
        "Yes",
        "The chains have converged, and the model agrees with held-out data.",
    )
    assert "Data digits" in found["What was it trained on?"][1]
    assert f"gebm-kit train {run}/resolved.yaml" in found["How do I make it again?"][1]


@pytest.mark.parametrize(
    ("ratio", "word"),
    [(estimate(1.1, 0.9, 1.3), "No different"), (estimate(2.0, 1.5, 2.5), "No"), (estimate(0.5), "Not known")],
)
def test_the_verdict_of_an_evaluation_without_sentences_comes_from_the_interval(
    run: Path, ratio: dict[str, Any], word: str
) -> None:
    metrics = evaluation()["metrics"] | {"ratio": {"mmd": ratio}}
    assert answers(page_of(run, evaluation(metrics=metrics)))["Is the GEBM better than its base?"][0] == word


def test_a_diagnostic_that_is_off_says_what_to_do(run: Path) -> None:
    diagnostics = evaluation()["diagnostics"] | {"nested_rhat_max": 1.4}
    page = page_of(run, evaluation(diagnostics=diagnostics))
    assert answers(page)["Can the draws be trusted?"][0] == "Not as they are"
    text = html_of(page)
    assert "nested R-hat is 1.4 (at most 1.05 is wanted)" in text
    assert "raise sample.warmup and sample.steps" in text


def test_draws_of_a_model_that_is_off_are_draws_of_that_model(run: Path) -> None:
    equilibrium = {"gap": estimate(0.4, 0.3, 0.5), "agrees": False, "worsens": None}
    word, text = answers(page_of(run, evaluation(equilibrium=equilibrium)))["Can the draws be trusted?"]
    assert word == "Yes, as draws of the model"
    assert "difference of energies between draws and held-out data (40 % of that between base and data)" in text


def test_phases_are_marked_and_named(run: Path) -> None:
    text = html_of(page_of(run))
    for words in ("1 to 20", "21 to 60", "61 to 70", ">pretraining<", "base and energy"):
        assert words in text, words


@pytest.mark.parametrize(
    "change",
    [
        {"metrics": {"gebm": None, "base": {}}},
        {"diagnostics": {"sampler": 5, "rhat_max": "x", "details": 3}},
        {"equilibrium": {"gap": None, "metric_at_1x": {"value": 1}, "ratio": {"value": 2}, "longest": "4"}},
        {"classes": {"0": {"metrics": None}, "1": 3}},
        {"protocol": None, "verdict": None, "calibration": None, "log_partition": None},
    ],
)
def test_odd_evaluations_make_a_page(run: Path, change: dict[str, Any]) -> None:
    assert "How to make it again" in html_of(page_of(run, evaluation(**change)))


def test_a_folder_that_is_not_a_run(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="is not a run directory"):
        gk.report(tmp_path)


def test_a_tilt_has_a_page(tmp_path: Path) -> None:
    level = {
        "beta": 2.0,
        "score": estimate(0.5, 0.4, 0.6),
        "kl": estimate(0.2),
        "problems": [],
        "sampler": "<b>imh</b>",
    }
    found = {"schema": 1, "base": {"score": estimate(0.1)}, "levels": [level], "generator": {"path": "<i>g.pt</i>"}}
    (tmp_path / "tilt.json").write_text(json.dumps(found))
    text = gk.report(tmp_path).read_text()
    assert "From 0.1 of the generator to 0.5 (0.4 to 0.6) at beta 2" in text
    assert "<b>imh" not in text
    assert "<i>" not in text
    (tmp_path / "tilt.json").write_text('{"levels": 3}')
    with pytest.raises(CheckpointError, match="it lists no levels"):
        gk.report(tmp_path)


def test_damaged_draws_are_left_out(tmp_path: Path) -> None:
    assert read_kept_draws(tmp_path, "step-1", (2,)) is None
    for content in (b"", b"\xff" * 100, b"\x02\x00\x00\x00\x00\x00\x00\x00{}", b"\x02\x00\x00\x00\x00\x00\x00\x00[]"):
        (tmp_path / FILE).write_bytes(content)
        assert read_kept_draws(tmp_path, "step-1", (2,)) is None


def test_numbers_and_words() -> None:
    assert [number(value) for value in (None, 3, 0.12345, 29273.4, 1e12, float("nan"), True)] == [
        "–", "3", "0.1235", "29,273", "1e+12", "–", "yes",
    ]  # fmt: skip
    assert interval(estimate(0.5, 0.4, 0.6)) == "0.5 (0.4 to 0.6)"
    assert interval({"value": torch.inf}) == "–"
    assert plain("a\x1b[31m\n b" + "c" * 500, 10) == "a?[31m bc…"
    assert [seconds(value) for value in (0.2, 61, 7300, None)] == ["under a second", "1 min 1 s", "2 h 1 min", "–"]
    assert listed(["a", "b", "c"]) == "a, b and c"
