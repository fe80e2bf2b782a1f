"""Values against held-out and training data, their names and protocols."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from torch import Tensor

from gebm_kit.bases.mlp import MlpBase
from gebm_kit.cli.results import protocol_words, show_evaluation
from gebm_kit.config.load import load_recipe
from gebm_kit.config.schema import ComponentNode, Recipe
from gebm_kit.core.errors import UsageError
from gebm_kit.core.interfaces import EvalContext, Metric, SplitName
from gebm_kit.core.model import GEBM
from gebm_kit.data.tensors import TensorDataset
from gebm_kit.energies.mlp import MlpEnergy
from gebm_kit.engine.datasets.held_out import HeldOut, evenly_spaced_rows
from gebm_kit.engine.evaluation.evaluation import Evaluation, score, score_recipe
from gebm_kit.engine.evaluation.feature_maps import FeatureSettings
from gebm_kit.engine.evaluation.metrics import build_metrics, metrics_of
from gebm_kit.engine.evaluation.settings import EvaluationSettings
from gebm_kit.engine.sampling.settings import SampleSettings
from gebm_kit.engine.training.best_checkpoint import BestCheckpoint
from gebm_kit.metrics.data_copying import DataCopying
from gebm_kit.metrics.frechet import Fid
from gebm_kit.metrics.inception_score import InceptionScore
from gebm_kit.metrics.prdc import Prdc
from gebm_kit.samplers.hmc import Hmc

NAMES = ["fid", "kid", "prdc", "inception-score", "mmd"]


class Shifted(TensorDataset):
    """Normal points. The training part is shifted, so that values against it differ."""

    def __init__(self, num_valid: int = 60) -> None:
        generator = torch.Generator().manual_seed(0)
        sizes: dict[SplitName, int] = {"train": 150, "valid": num_valid, "test": 90}
        parts = {part: torch.randn(num, 3, generator=generator) for part, num in sizes.items()}
        parts["train"] += 2.0
        labels = {part: torch.arange(num) % 2 for part, num in sizes.items()}
        self._fill(parts, value_range=None, labels=labels)


def model() -> GEBM:
    torch.manual_seed(0)
    return GEBM(MlpBase(latent_dim=2, data_shape=(3,), value_range=None), MlpEnergy(data_shape=(3,)))


def scored(dataset: Any = None, names: list[Any] | None = None, **arguments: Any) -> Evaluation:
    sampling = SampleSettings(num_chains=60, warmup=5, steps=8, thin=1)
    metrics = build_metrics(["fid"] if names is None else names)
    arguments = {"features": FeatureSettings((ComponentNode("classifier", {"steps": 30}),)), **arguments}
    settings = EvaluationSettings(60, 2, log_partition="importance-sampling", **arguments)
    return score(model(), dataset or Shifted(), metrics, Hmc(), sampling, settings)


@pytest.fixture(scope="module")
def result() -> Evaluation:
    return scored(names=NAMES)


def test_metrics_that_ask_for_it_are_scored_against_training_data_too(result: Evaluation) -> None:
    both = ["fid", "kid", "prdc.precision", "prdc.recall", "prdc.density", "prdc.coverage"]
    expected = {*both, *(f"{name}.train" for name in both), "inception-score", "mmd"}
    for column in ("data", "base", "gebm"):
        assert set(result.metrics[column]) == expected
    assert set(result.metrics["ratio"]) == {"fid", "fid.train", "kid", "kid.train", "mmd"}


def test_values_against_training_data_equal_those_with_it_as_reference(result: Evaluation) -> None:
    plain = scored(reference="train")
    for column in ("base", "gebm"):
        assert result.metrics[column]["fid.train"] == plain.metrics[column]["fid"]
    assert result.metrics["base"]["fid"] == scored().metrics["base"]["fid"]
    gap = result.metrics["data"]["fid.train"].value - result.metrics["data"]["fid"].value
    assert gap > 1.0  # on standardised features a shift by two is a large one


def test_the_protocol_tells_both_references(result: Evaluation) -> None:
    for name in ("fid", "kid", "prdc"):
        protocol = result.protocol[name]
        assert (protocol["samples"], protocol["reference"], protocol["reference_part"]) == (60, 90, "test")
        assert protocol["train"] == {"reference_part": "train", "reference": 150}
        assert (protocol["features"], protocol["resize"]) == ("classifier", "none")
        assert len(protocol["features_checksum"]) == 64
    assert "train" not in result.protocol["mmd"]
    assert "train" not in result.protocol["inception-score"]
    differing = scored(names=["kid"], num_reference=40).protocol["kid"]
    assert (differing["reference"], differing["train"]["reference"], differing["subset_size"]) == (40, 40, 40)
    json.dumps(result.as_dict(), allow_nan=False)


def test_training_data_can_be_left_out(result: Evaluation) -> None:
    assert set(scored(against_train=False).metrics["gebm"]) == {"fid"}
    rows = torch.randn(100, 3, generator=torch.Generator().manual_seed(1))
    found = scored(HeldOut(rows), [Fid("pixels")])
    assert set(found.metrics["gebm"]) == {"fid"}  # none of the given rows were trained on
    assert "train" not in found.protocol["fid"]


class Wanting(Metric):
    """Counts the training rows that it is given, and keeps them."""

    needs_train = True
    lower_is_better = True

    def __init__(self) -> None:
        self.seen: list[Tensor] = []

    def __call__(self, context: EvalContext) -> dict[str, float]:
        assert context.train is not None
        self.seen.append(context.train)
        return {"wanting": float(len(context.train))}


def test_metrics_that_need_training_data_get_it() -> None:
    """They get the same tensor for every set, and it is no reason to score others against training data."""
    wanting = Wanting()
    found = scored(
        names=[wanting, "fid", "authenticity", DataCopying(min_draws=10)], against_train=False, num_reference=100
    )
    (name,) = set(found.metrics["gebm"]) - {"fid", "authenticity", "data-copying"}
    assert all(found.metrics[column][name].value == 100 for column in ("data", "base", "gebm"))
    assert {id(rows) for rows in wanting.seen} == {id(wanting.seen[0])}
    assert torch.equal(wanting.seen[0], evenly_spaced_rows(Shifted().split("train"), "", 100))
    for key in ("authenticity", "data-copying"):
        assert key not in found.metrics["ratio"]
        assert found.protocol[key]["train_rows"] == 100
        assert "train" not in found.protocol[key]
    assert protocol_words(found.protocol["authenticity"]).startswith("60 draws against 100 train rows, features")
    assert protocol_words(found.protocol["data-copying"]).startswith("60 draws against 90 test rows and 100 train rows")
    assert set(scored(names=["fid", Wanting()]).metrics["gebm"]) > {"fid", "fid.train"}


def test_a_look_during_training_gives_it_too() -> None:
    words = ["eval.metrics=[{name: authenticity, features: pixels},{name: fid, features: pixels}]"]
    sizes = ["eval.num_samples=40", "eval.num_sets=2", "sample.num_chains=40", "sample.warmup=2", "sample.steps=8"]
    recipe = load_recipe("quickstart", [*words, *sizes, "sample.thin=1"])
    assert set(score_recipe(model(), Shifted(), recipe, brief=True).metrics["gebm"]) == {"fid", "authenticity"}


@pytest.mark.parametrize("name", ["authenticity", "data-copying"])
def test_rows_that_came_without_training_data_are_refused_before_anything_is_drawn(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gebm_kit.engine.evaluation.evaluation.base_sets", lambda *arguments: pytest.fail("drawn"))
    rows = HeldOut(torch.randn(200, 3, generator=torch.Generator().manual_seed(1)))
    with pytest.raises(
        UsageError, match=f"metric {name} compares draws with training data, and these rows came without"
    ):
        scored(rows, [name])


def test_a_draw_set_of_training_rows_is_found_as_copied() -> None:
    """The floor of rows that are the training data: authenticity 0 and C_T far below 0."""

    class Copied(TensorDataset):
        def __init__(self) -> None:
            parts: dict[SplitName, Tensor] = {part: Shifted().split(part).first(150) for part in ("train", "test")}
            self._fill(parts | {"valid": parts["train"][:90] + 1e-5}, value_range=None)

    found = scored(Copied(), ["authenticity", DataCopying(min_draws=10)]).metrics["data"]
    assert found["authenticity"].value == 0.0
    assert found["data-copying"].value < -5


@pytest.mark.parametrize("metric", [Prdc("pixels", nearest_k=60), InceptionScore(splits=61)])
def test_too_few_rows_are_refused_before_anything_is_drawn(metric: Metric, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gebm_kit.engine.evaluation.evaluation.base_sets", lambda *arguments: pytest.fail("drawn"))
    with pytest.raises(UsageError, match="needs at least 61 draws, and there are 60"):
        scored(names=[metric])
    with pytest.raises(UsageError, match="metric prdc needs at least 56 held-out rows, and there are 50"):
        scored(Shifted(num_valid=50), [Prdc("pixels", nearest_k=55)])


def test_looks_during_training_leave_training_data_out() -> None:
    recipe = load_recipe(
        "quickstart",
        [
            "eval.metrics=[{name: fid, features: pixels}]", "eval.num_samples=40", "eval.num_sets=2",
            "sample.num_chains=40", "sample.warmup=2", "sample.steps=8", "sample.thin=1",
        ],
    )  # fmt: skip
    assert set(score_recipe(model(), Shifted(), recipe, brief=True).metrics["gebm"]) == {"fid"}
    assert set(score_recipe(model(), Shifted(), recipe).metrics["gebm"]) == {"fid", "fid.train"}


def test_the_best_checkpoint_is_chosen_on_held_out_data() -> None:
    def best_of(recipe: Recipe) -> BestCheckpoint:
        return BestCheckpoint(recipe, build_metrics(metrics_of(recipe, Shifted())))

    words = ["eval.metrics=[{name: fid, features: pixels}]", "train.eval_every=5"]
    best_of(load_recipe("quickstart", [*words, "train.keep_best.metric=fid"]))
    with pytest.raises(UsageError, match=r"'fid.train' is scored against training data"):
        best_of(load_recipe("quickstart", [*words, "train.keep_best.metric=fid.train"]))


def test_printed_values_come_with_their_protocol(result: Evaluation, capsys: pytest.CaptureFixture[str]) -> None:
    show_evaluation(result.as_dict())
    out = capsys.readouterr().out
    checksum = result.protocol["fid"]["features_checksum"][:8]
    line = f"fid, kid, prdc: 60 draws against 90 test rows and 150 train rows, features classifier ({checksum})"
    assert f"{line}, resize none" in out
    assert f"inception-score: 60 draws, features classifier ({checksum}), resize none" in out
    assert "in place of draws" not in out  # held-out rows and draws are equally many
    protocol = {"samples": 60, "held_out": 30}
    assert protocol_words(protocol) == "60 draws, held-out data by 30 rows in place of draws"
    assert protocol_words({"reference": 5, "base_draws": 8}) == ""
    assert protocol_words({"samples": 5, "reference": 8, "features": "pixels"}) == (
        "5 draws against 8 reference rows, features pixels (), resize none"
    )
