"""Tests of energies that need no training: scorers from files, classes, and sums."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

import gebm_kit as gk
from gebm_kit.config.load import load_recipe
from gebm_kit.core.errors import CheckpointError, DataError, GebmKitError, RecipeError, UsageError
from gebm_kit.core.interfaces import HasFitting, HasSource
from gebm_kit.core.trust import trust_programs
from gebm_kit.data.digits import Digits
from gebm_kit.energies.classifier import ClassifierEnergy
from gebm_kit.energies.codes import CodesEnergy
from gebm_kit.energies.conv import ConvEnergy
from gebm_kit.energies.mlp import MlpEnergy
from gebm_kit.energies.pretrained import PretrainedEnergy
from gebm_kit.energies.sum import SumEnergy
from gebm_kit.features.classifier import Classifier
from gebm_kit.features.pixels import Pixels
from gebm_kit.testing import check_energy

SHAPE = (1, 8, 8)


class Flat(nn.Module):
    """A linear layer on 64 flattened values, with ``out`` outputs, followed by ``end``."""

    def __init__(self, out: int = 1, end: Callable[[Tensor], Any] = lambda rows: rows) -> None:
        super().__init__()
        self.layer, self.end = nn.Linear(64, out), end

    def forward(self, x: Tensor) -> Any:
        return self.end(self.layer(x.flatten(1)))


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def script(module: nn.Module, path: Path, shape: tuple[int, ...] = SHAPE) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        traced = torch.jit.trace(module.eval(), torch.randn(3, *shape), check_trace=False)
        torch.jit.save(traced, str(path))
    return path


def load(
    path: Path, shape: tuple[int, ...] = SHAPE, value_range: Any = (-1.0, 1.0), **options: Any
) -> PretrainedEnergy:
    with trust_programs():
        return PretrainedEnergy(str(path), data_shape=shape, value_range=value_range, **options)


def rows(num: int = 5, shape: tuple[int, ...] = SHAPE) -> Tensor:
    return torch.rand(num, *shape, generator=torch.Generator().manual_seed(1)) * 2 - 1


# --- programs --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["torchscript", "export"])
@pytest.mark.parametrize("end", [lambda v: v, lambda v: v.squeeze(1)])
def test_a_score_is_turned_into_an_energy_with_sign_and_scale(tmp_path, kind, end):
    module, x = Flat(end=end).eval(), rows()
    path = tmp_path / "scorer.pt2"
    if kind == "torchscript":
        script(module, path)
    else:
        shapes = ({0: torch.export.Dim("batch")},)
        torch.export.save(torch.export.export(module, (x,), dynamic_shapes=shapes), path)
    score = module(x).reshape(-1).detach()
    torch.testing.assert_close(load(path)(x), -score)
    torch.testing.assert_close(load(path, scale=2.5)(x), -2.5 * score)
    torch.testing.assert_close(load(path, scale=2.5, sign=1)(x), 2.5 * score)
    given = x.clone().requires_grad_()
    (grad,) = torch.autograd.grad(load(path)(given).sum(), given)
    torch.testing.assert_close(grad[0].flatten(), -module.layer.weight[0].detach())
    energy = load(path)
    assert isinstance(energy, HasSource)
    assert energy(x.double()).dtype == torch.float64
    assert not list(energy.parameters())


def test_logits_with_a_target_are_a_log_probability(tmp_path):
    module, x = Flat(out=5).eval(), rows()
    path = script(module, tmp_path / "classifier.pt")
    expected = -module(x).detach().log_softmax(1)[:, 3]
    torch.testing.assert_close(load(path, target=3)(x), expected)
    with pytest.raises(UsageError, match=r"target=5 does not exist: .* has 5 classes, 0 to 4"):
        load(path, target=5)
    with pytest.raises(
        UsageError, match=r"returns shape \[4, 5\] for 4 rows; it must return one number a row"
    ) as caught:
        load(path)
    assert "set energy.target to one of 0 to 4" in caught.value.hint


def test_values_are_mapped_resized_and_reshaped(tmp_path):
    class Mean(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.flatten(1).mean(1)

    path = script(Mean(), tmp_path / "mean.pt")
    x = rows()
    torch.testing.assert_close(-load(path, input_range=[0.0, 1.0])(x), (x.flatten(1).mean(1) + 1) / 2)
    assert load(path, resize=[16, 12]).prepared(x).shape == (5, 1, 16, 12)
    assert load(path, input_shape=[64]).prepared(x).shape == (5, 64)
    both = load(path, resize=[4, 4], input_shape=[16])
    torch.testing.assert_close(both(torch.full((2, *SHAPE), 0.3)), torch.full((2,), -0.3))
    for options, said in (
        ({"input_shape": [60]}, "another number of values"),
        ({"resize": [4]}, "rows, columns"),
        ({"input_range": [1.0, 0.0]}, "low < high"),
        ({"input_range": [0.0, 1.0], "value_range": None}, "needs data with a fixed range"),
        ({"scale": 0.0}, "scale must be"),
        ({"sign": 2}, "sign must be -1"),
        ({"prefix": "energy."}, r"belongs to a \.safetensors file"),
    ):
        with pytest.raises(UsageError, match=said):
            load(path, **options)


@pytest.mark.parametrize(
    ("module", "said"),
    [
        (Flat(end=lambda v: v.mean()), r"returns shape \[\] for 4 rows"),
        (Flat(end=lambda v: v.repeat(2, 1)), r"returns shape \[8, 1\] for 4 rows"),
        (Flat(end=lambda v: (v > 0).byte()), "returns torch.uint8, but must return floating-point"),
        (Flat(end=lambda v: (v, v)), "returns a tuple, but must return one tensor"),
        (nn.Sequential(nn.Flatten(), nn.Linear(64, 1)), None),
    ],
)
def test_a_program_that_returns_something_else_is_refused(tmp_path, module, said):
    path = script(module, tmp_path / "scorer.pt")
    if said is None:
        assert load(path)(rows()).shape == (5,)
        with pytest.raises(UsageError, match="fails on 4 rows of shape"):
            load(path, shape=(1, 4, 4))
    else:
        with pytest.raises(UsageError, match=said):
            load(path)


def test_a_program_needs_trust_and_other_files_are_refused_by_kind(tmp_path):
    path = script(Flat(), tmp_path / "scorer.pt")
    with pytest.raises(UsageError, match="only if you say that you trust it") as caught:
        PretrainedEnergy(str(path), data_shape=SHAPE)
    assert "--trust-program" in caught.value.hint
    torch.save({"weight": torch.ones(2)}, tmp_path / "state.pt")
    for name, said in (("state.pt", "never loaded"), ("none.pt", "the scorer's file"), (".", "is a folder")):
        with pytest.raises(DataError, match=said):
            load(tmp_path / name)
    (tmp_path / "notes.txt").write_text("no program")
    with pytest.raises(DataError, match="is not a scorer"):
        load(tmp_path / "notes.txt")


def test_weights_of_a_trained_energy_are_frozen(tmp_path):
    trained = MlpEnergy([8], data_shape=SHAPE)
    safetensors.torch.save_file(
        {f"energy.{k}": v for k, v in trained.state_dict().items()}, tmp_path / "model.safetensors"
    )
    path = tmp_path / "model.safetensors"
    energy = load(path, architecture=MlpEnergy([8], data_shape=SHAPE), prefix="energy.")
    torch.testing.assert_close(energy(rows()), trained(rows()).detach())
    assert not any(parameter.requires_grad for parameter in energy.parameters())
    with pytest.raises(UsageError, match="does not fit") as caught:
        load(path, architecture=MlpEnergy([8], data_shape=SHAPE))
    assert "energy.prefix=energy." in caught.value.hint
    with pytest.raises(UsageError, match="holds only weights"):
        load(path)
    with pytest.raises(UsageError, match="only for programs"):
        load(path, architecture=MlpEnergy([8], data_shape=SHAPE), prefix="energy.", target=1)


# --- classes and sums ------------------------------------------------------------------------------------------------


def test_a_class_is_minus_its_log_probability_with_a_gradient():
    data = Digits()
    energy = ClassifierEnergy(3, Classifier(steps=200), scale=2.0, data_shape=SHAPE, num_classes=10)
    assert isinstance(energy, HasFitting)
    assert not energy.fitted
    energy.fit(data, torch.device("cpu"), seed=0)
    assert energy.fitted
    split, labels = data.split("test"), data.labels("test")
    x = split.batch(torch.arange(len(split))).requires_grad_()
    values = energy(x)
    assert float(values[labels == 3].mean()) < 2 < float(values[labels != 3].mean())
    (grad,) = torch.autograd.grad(values.sum(), x)
    assert bool((grad.flatten(1) != 0).any(1).all())
    twin = ClassifierEnergy(3, Classifier(steps=200), scale=2.0, data_shape=SHAPE, num_classes=10)
    twin.load_state_dict(energy.state_dict())
    assert twin.fitted
    torch.testing.assert_close(twin(x), values)


def test_without_a_target_it_scores_the_class_that_is_asked_for():
    one, asked = (
        ClassifierEnergy(target, Classifier(steps=20), data_shape=SHAPE, num_classes=10) for target in (3, None)
    )
    one.fit(Digits(), torch.device("cpu"), seed=0)
    asked.load_state_dict(one.state_dict())
    check_energy(asked, data_shape=SHAPE)
    x = rows()
    torch.testing.assert_close(asked(x, torch.full((len(x),), 3)), one(x))
    labels = torch.arange(len(x)) % 10
    probabilities = torch.stack([torch.exp(-asked(x, torch.full_like(labels, y))) for y in range(10)], 1)
    torch.testing.assert_close(probabilities.sum(1), torch.ones(len(x)))
    torch.testing.assert_close(asked(x, labels), -probabilities.log().gather(1, labels[:, None])[:, 0])
    both = SumEnergy([MlpEnergy([8], data_shape=SHAPE), asked])
    assert both.conditional
    assert both.num_classes == 10
    with pytest.raises(UsageError, match="needs the class of every row"):
        asked(x)
    with pytest.raises(UsageError, match="was given labels, and it is not conditional"):
        one(x, labels)


def test_a_class_must_exist_and_the_features_must_have_a_classifier():
    with pytest.raises(UsageError, match=r"target=10 does not exist: the data have 10 classes, 0 to 9"):
        ClassifierEnergy(10, data_shape=SHAPE, num_classes=10)
    with pytest.raises(UsageError, match="needs data with labels"):
        ClassifierEnergy(0, data_shape=SHAPE, num_classes=None)
    with pytest.raises(UsageError, match="can't use the feature map Pixels"):
        ClassifierEnergy(0, Pixels(), data_shape=SHAPE, num_classes=10)


def test_a_sum_is_the_weighted_sum_of_its_parts():
    parts = [MlpEnergy([8], data_shape=SHAPE), MlpEnergy([4], data_shape=SHAPE)]
    energy, x = SumEnergy(parts, [2.0, -0.5]), rows()
    torch.testing.assert_close(energy(x), 2 * parts[0](x) - 0.5 * parts[1](x))
    torch.testing.assert_close(SumEnergy(parts)(x), parts[0](x) + parts[1](x))
    assert energy.fitted
    check_energy(SumEnergy(parts), data_shape=SHAPE)
    with_class = SumEnergy([parts[0], ClassifierEnergy(1, Classifier(steps=5), data_shape=SHAPE, num_classes=10)])
    assert not with_class.fitted
    with_class.fit(Digits(), torch.device("cpu"), seed=0)
    assert with_class.fitted
    for bad, weights, said in (
        ([], None, "at least one part"),
        (parts, [1.0], "2 parts and 1 weights"),
        (parts, [1.0, math.nan], "finite weights"),
        ([CodesEnergy(data_shape=SHAPE)], None, "is defined on codes"),
    ):
        with pytest.raises(UsageError, match=said):
            SumEnergy(bad, weights)


def test_a_sum_is_conditional_if_a_part_is():
    parts = [
        MlpEnergy([8], conditional=True, num_classes=3, data_shape=SHAPE),
        MlpEnergy([4], data_shape=SHAPE),
        ConvEnergy(4, conditional=True, num_classes=3, data_shape=SHAPE),
    ]
    energy, x, labels = SumEnergy(parts, [2.0, -0.5, 1.0]), rows(), torch.arange(len(rows())) % 3
    assert (energy.conditional, energy.num_classes) == (True, 3)
    expected = 2 * parts[0](x, labels) - 0.5 * parts[1](x) + parts[2](x, labels)
    torch.testing.assert_close(energy(x, labels), expected)
    check_energy(energy, data_shape=SHAPE)
    with pytest.raises(UsageError, match="SumEnergy is conditional: it needs the class of every row"):
        energy(x)
    plain = SumEnergy(parts[1:2])
    assert (plain.conditional, plain.num_classes) == (False, None)
    with pytest.raises(UsageError, match="SumEnergy was given labels, and it is not conditional"):
        plain(x, labels)
    other = MlpEnergy([8], conditional=True, num_classes=4, data_shape=SHAPE)
    with pytest.raises(UsageError, match="energy 'sum' has parts with 3 and 4 classes; they must agree"):
        SumEnergy([parts[0], other])


# --- recipes ---------------------------------------------------------------------------------------------------------

RECIPE = """\
schema: 1
data: {name: digits}
base: {name: mlp, latent_dim: 4, hidden: [16]}
energy:
  name: sum
  parts:
    - mlp
    - {name: pretrained, path: scorer.pt, input_range: [0, 1]}
    - {name: classifier, target: 3, features: {name: classifier, steps: 5}}
  weights: [1, 0.5, 0.25]
train: {steps: 4, energy_steps: 1, batch_size: 16, log_every: 1, checkpoint_every: 100}
ema: {decay: 0}
sample: {num_samples: 20, num_chains: 10, warmup: 2, steps: 4, thin: 1}
sampler: hmc
eval: {metrics: [mmd], num_samples: 20, num_sets: 2, log_partition: importance-sampling}
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    script(Flat(), tmp_path / "scorer.pt")
    (tmp_path / "mine.yaml").write_text(RECIPE)
    return tmp_path


@pytest.mark.filterwarnings("ignore::gebm_kit.core.progress.GebmKitWarning")
@pytest.mark.usefixtures("quick_evaluation")
def test_a_sum_in_a_recipe_is_trained_saved_and_read_back_with_its_scorer(folder, monkeypatch):
    with trust_programs():
        run = gk.train("mine.yaml", out=folder / "run")
        energy = run.model.energy
    (copy,) = [path for path in (folder / "run" / "energy").iterdir() if path.suffix == ".pt"]
    assert copy.name.endswith("-scorer.pt")
    (folder / "scorer.pt").unlink()
    with trust_programs():
        again = gk.load_run(folder / "run").model.energy
    x = rows()
    torch.testing.assert_close(again(x), energy(x))
    with pytest.raises(UsageError, match="trust"):
        _ = gk.load_run(folder / "run").model
    copy.write_bytes(copy.read_bytes()[:-1] + b"x")
    with trust_programs(), pytest.raises(CheckpointError, match="is damaged"):
        _ = gk.load_run(folder / "run").model


@pytest.mark.filterwarnings("ignore::gebm_kit.core.progress.GebmKitWarning")
@pytest.mark.usefixtures("quick_evaluation")
@pytest.mark.parametrize(
    "node",
    ["{name: pretrained, path: scorer.pt}", "{name: classifier, target: 3, features: {name: classifier, steps: 5}}"],
)
def test_a_scorer_alone_in_a_recipe_trains_the_base(folder, node):
    with trust_programs():
        with pytest.raises(UsageError, match="has nothing to train") as caught:
            gk.train("mine.yaml", [f"energy={node}"], out=folder / "run")
        assert "gebm-kit tilt" in caught.value.hint
        run = gk.train("mine.yaml", [f"energy={node}", "train.part=base"], out=folder / "run")
        x = rows()
        torch.testing.assert_close(gk.load_run(run.path).model.energy(x), run.model.energy(x))


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("energy.parts=mlp", "is not a list of energy with parameters"),
        ("energy.parts=[mlpp]", "energy.parts\\[0\\].*mlpp.*mlp"),
        ("energy.parts=[{name: mlp, hiden: [3]}]", "energy.parts\\[0\\].hiden: energy 'mlp' has no such parameter"),
        ("energy={name: classifier, target: -1}", "target"),
        ("energy={name: sum}", "needs parts \\(list of energy with parameters\\)"),
        ("energy={name: pretrained, path: a, sign: 3}", "3 is not allowed"),
    ],
)
def test_mistakes_in_a_recipe_are_named(folder, word, said):
    with pytest.raises(RecipeError, match=said):
        load_recipe("mine.yaml", [word])


def test_a_class_needs_labels_in_a_recipe(folder):
    with pytest.raises(GebmKitError, match="needs data with labels"):
        gk.train("mine.yaml", ["data=eight-gaussians", "energy={name: classifier, target: 1}"], out=folder / "run")
