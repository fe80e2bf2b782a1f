"""Flows of classes: the density given the class, its inverse, training with labels, and what is refused."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch

pytest.importorskip("gebm_kit_flows", reason="the plugin package gebm-kit-flows is not installed")

import gebm_kit as gk
from gebm_kit.config.build import build_dataset
from gebm_kit.config.load import load_recipe
from gebm_kit.core.errors import GebmKitError, UsageError
from gebm_kit.core.interfaces import HasDensity, HasEncoder, HasPretraining
from gebm_kit.core.model import GEBM, LatentPotential
from gebm_kit.energies.codes import CodesEnergy
from gebm_kit.engine.run_directory.checkpoint import read_checkpoint, save_checkpoint
from gebm_kit.engine.training.checkpoint_state import counters_of, restore, tensors_of
from gebm_kit.engine.training.trainer import Trainer
from gebm_kit.testing import check_base, check_energy
from gebm_kit.testing.host_sync import forbid_host_sync
from gebm_kit_flows.bases import MAF, NSF, Gaussianization, RealNVP
from gebm_kit_flows.energy import FlowEnergy

K = 3
OF_CLASSES = {"conditional": True, "num_classes": K}
BASES = {
    "realnvp": lambda **facts: RealNVP(4, [16], **facts),
    "maf": lambda **facts: MAF(3, [16], **facts),
    "iaf": lambda **facts: MAF(3, [16], fast="sampling", **facts),
    "nsf": lambda **facts: NSF(2, [16], **facts),
    "autoregressive nsf": lambda **facts: NSF(2, [16], scheme="autoregressive", **facts),
    "nsf, fast draws": lambda **facts: NSF(2, [16], fast="sampling", **facts),
    "gaussianization": lambda **facts: Gaussianization(3, 4, **facts),
}
LABELS = torch.tensor([0, 1, 2, 0, 1, 2])


@pytest.fixture(params=BASES)
def base(request):
    torch.manual_seed(0)
    base = BASES[request.param](data_shape=(2,), **OF_CLASSES).double()
    with torch.no_grad():  # move away from the initial weights, which are close to the identity
        for parameter in base.parameters():
            parameter.mul_(1.5)
    return base.eval()


@pytest.mark.parametrize("name", BASES)
@pytest.mark.parametrize("shape", [(2,), (1, 2, 3)])
def test_conformance(name, shape):
    torch.manual_seed(0)
    base = BASES[name](data_shape=shape, **OF_CLASSES)
    check_base(base)
    given = GEBM(base, FlowEnergy("realnvp", 2, [8], data_shape=shape)).given(1).base
    for part in (base, given):
        assert isinstance(part, HasDensity)
        assert isinstance(part, HasEncoder)
        assert isinstance(part, HasPretraining)


def test_the_density_given_the_class_is_that_of_its_draws(base):
    """log b(x | y) agrees with log N(z) - log |det dG/dz| at the class, by automatic differentiation of the draw."""
    z = torch.randn(6, 2, dtype=torch.float64)
    x = base(z, LABELS)
    torch.testing.assert_close(base.encode(x, LABELS), z, rtol=1e-9, atol=1e-8)
    jacobians = [
        torch.autograd.functional.jacobian(lambda v, y=label: base(v[None], torch.tensor([y]))[0], row)
        for row, label in zip(z, LABELS.tolist(), strict=True)
    ]
    log_det = torch.stack(jacobians).det().abs().log()
    expected = torch.distributions.Normal(0.0, 1.0).log_prob(z).sum(1) - log_det
    torch.testing.assert_close(base.log_prob(x, LABELS), expected, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(base.pretraining_loss(x, LABELS), -expected.mean(), rtol=1e-8, atol=1e-8)


def test_classes_have_densities_of_their_own(base):
    z = torch.randn(1, 2, dtype=torch.float64).expand(K, 2)
    x = base(z, torch.arange(K))
    assert len(x.unique(dim=0)) == K
    assert len(base.log_prob(x[:1].expand(K, 2), torch.arange(K)).unique()) == K
    model = GEBM(base, FlowEnergy("realnvp", 2, [8], data_shape=(2,)).double())
    for label in range(K):
        own, labels = model.given(label).base, torch.full((K,), label)
        assert torch.equal(own(z), base(z, labels))
        assert torch.equal(own.log_prob(x), base.log_prob(x, labels))
        assert torch.equal(own.encode(x), base.encode(x, labels))


@pytest.mark.parametrize("base", ["realnvp", "gaussianization"], indirect=True)
def test_the_density_of_a_class_integrates_to_one(base):
    grid = torch.linspace(-6.0, 6.0, 481, dtype=torch.float64)
    x, width = torch.sinh(grid), torch.cosh(grid)
    points = torch.cartesian_prod(x, x)
    with torch.no_grad():
        density = torch.cat([base.log_prob(p, torch.full((len(p),), 2)) for p in points.split(20_000)]).exp()
    values = density.view(len(x), len(x)) * width[:, None] * width
    mass = torch.trapezoid(torch.trapezoid(values, grid), grid)
    assert abs(float(mass) - 1) < 1e-3


def test_every_weight_learns(base):
    z = torch.randn(6, 2, dtype=torch.float64)
    for loss in (base(z, LABELS).square().mean(), base.pretraining_loss(z, LABELS)):
        base.zero_grad()
        loss.backward()
        assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in base.parameters())
    assert bool((base.bijection.embedding.weight.grad != 0).any(1).all())


@pytest.mark.parametrize("name", BASES)
@pytest.mark.parametrize("block_size", [None, 4])
def test_chains_carry_their_labels_and_wait_for_no_device(name, block_size):
    torch.manual_seed(0)
    model = GEBM(
        BASES[name](data_shape=(3,), **OF_CLASSES), FlowEnergy("realnvp", 2, [8], data_shape=(3,), **OF_CLASSES)
    )
    z = torch.randn(6, 3)
    with LatentPotential(model, block_size=block_size, labels=LABELS) as potential:
        potential.value_and_grad(z)
        with forbid_host_sync():
            found = potential.value_and_grad(z)
    for row, label in enumerate(LABELS.tolist()):
        with LatentPotential(model.given(label)) as potential:
            expected = potential.value_and_grad(z[row : row + 1])
        torch.testing.assert_close(found.value[row], expected.value[0], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(found.grad[row], expected.grad[0], rtol=1e-3, atol=1e-4)


def test_blocks_on_several_threads_carry_labels():
    torch.manual_seed(0)
    model = GEBM(RealNVP(3, [8], data_shape=(3,), **OF_CLASSES), FlowEnergy("realnvp", 2, [8], data_shape=(3,)))
    z, labels = torch.randn(64, 3), torch.arange(64) % K
    torch.set_num_threads(2)
    try:
        with torch.no_grad():
            expected = model(z, labels)
        with LatentPotential(model, block_size=4, labels=labels) as potential:
            for _ in range(5):
                torch.testing.assert_close(potential.energy(z), expected, rtol=1e-4, atol=1e-4)
    finally:
        torch.set_num_threads(1)


def test_a_copy_computes_with_its_own_weights():
    base = RealNVP(2, [8], data_shape=(2,), **OF_CLASSES)
    x = torch.randn(6, 2)
    before = base.log_prob(x, LABELS)
    twin = copy.deepcopy(base)
    with torch.no_grad():
        for parameter in base.parameters():
            parameter.zero_()
    assert torch.equal(twin.log_prob(x, LABELS), before)


@pytest.mark.parametrize("flow", ["maf", "nsf", "realnvp"])
def test_the_energy_is_minus_a_log_density_of_the_class(flow):
    torch.manual_seed(0)
    energy = FlowEnergy(flow, 2, [16], data_shape=(2,), **OF_CLASSES)
    check_energy(energy, (2,))
    x = torch.randn(1, 2).expand(K, 2)
    assert len(energy(x, torch.arange(K)).unique()) == K


# --- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [RealNVP, MAF, NSF, Gaussianization, FlowEnergy])
def test_what_is_refused(make):
    for count, found in ((None, "no labels"), (1, "1 class")):
        with pytest.raises(GebmKitError, match=f"conditional is true, and the dataset has {found}"):
            make(conditional=True, num_classes=count, data_shape=(3,))
    part, x = make(data_shape=(3,), **OF_CLASSES), torch.randn(2, 3)
    methods = [part] if make is FlowEnergy else [part, part.log_prob, part.encode, part.pretraining_loss]
    for method in methods:
        with pytest.raises(UsageError, match="is conditional: it needs the class of every row"):
            method(x)
        with pytest.raises(UsageError, match="there is no class 3; allowed are whole numbers from 0 to 2"):
            method(x, torch.tensor([0, 3]))
    plain = make(data_shape=(3,), num_classes=K)
    assert (plain.conditional, plain.num_classes) == (False, None)
    assert not any("embedding" in name for name in plain.state_dict())
    with pytest.raises(UsageError, match="is not conditional"):
        plain(x, torch.zeros(2, dtype=torch.int64))


def test_an_energy_on_codes_serves_no_classes():
    with pytest.raises(UsageError, match="CodesEnergy is on the base's codes, and such an energy serves no classes"):
        GEBM(RealNVP(2, [8], data_shape=(3,), **OF_CLASSES), CodesEnergy([8], data_shape=(3,)))


# --- training --------------------------------------------------------------------------------------------------------

TINY = """\
schema: 1
data: {name: digits}
base: {name: realnvp, transforms: 2, hidden: [8], conditional: true}
energy: {name: mlp, hidden: [8], conditional: true}
loss: {name: kale}
train:
  part: base-then-energy
  pretrain: {steps: 6, eval_every: 2}
  steps: 4
  energy_steps: 1
  start_steps: 0
  batch_size: 16
ema: {decay: 0.9}
sampler: {name: hmc}
sample: {num_samples: 80, num_chains: 80, warmup: 2, steps: 2, thin: 1}
eval: {metrics: [mmd], num_samples: 80, num_sets: 2}
"""


def recipe_of(folder: Path, *words: str):
    (folder / "tiny.yaml").write_text(TINY)
    return load_recipe(folder / "tiny.yaml", words)


def everything(trainer):
    return {
        f"{part}/{name}": tensor.clone()
        for part, tensors in tensors_of(trainer).items()
        for name, tensor in tensors.items()
        if "log_partition" not in name
    }


ALONE = ("train.part=base", "loss={name: ml}", "train.pretrain.eval_every=0")


@pytest.mark.parametrize("words", [(), ALONE], ids=["pretraining", "likelihood alone"])
def test_training_by_likelihood_takes_labels_and_resumes_to_the_bit(words, tmp_path):
    recipe = recipe_of(tmp_path, *words)
    dataset = build_dataset(recipe)
    torch.manual_seed(0)
    straight = Trainer(recipe, dataset, torch.device("cpu"))
    straight.initialise()
    before = everything(straight)
    last = recipe.train.total_steps
    for step in range(1, last + 1):
        straight.cycle()
        if step == 3:
            save_checkpoint(tmp_path, step, tensors_of(straight), counters_of(straight), keep=1)
    expected = everything(straight)
    assert not torch.equal(
        before["model/base.bijection.embedding.weight"], expected["model/base.bijection.embedding.weight"]
    )
    torch.manual_seed(0)
    resumed = Trainer(recipe, dataset, torch.device("cpu"))
    restore(resumed, read_checkpoint(tmp_path / "step-0000003"))
    for _ in range(3, last):
        resumed.cycle()
    found = everything(resumed)
    assert found.keys() == expected.keys()
    assert [key for key in expected if not torch.equal(expected[key], found[key])] == []


def test_the_validation_loss_is_that_of_the_rows_with_their_labels(tmp_path):
    recipe = recipe_of(tmp_path)
    dataset = build_dataset(recipe)
    torch.manual_seed(0)
    trainer = Trainer(recipe, dataset, torch.device("cpu"))
    base = trainer.model.base.eval()
    assert trainer.best_base is not None
    loss = trainer.best_base.look(base, 2)["base_valid_loss"]
    split = dataset.split("valid")
    rows = split.first(len(split))
    with torch.no_grad():
        assert float(loss) == pytest.approx(float(-base.log_prob(rows, dataset.labels("valid")).mean()), rel=1e-5)


@pytest.mark.filterwarnings("ignore::gebm_kit.core.progress.GebmKitWarning")
@pytest.mark.usefixtures("quick_evaluation")
def test_a_run_draws_classes(tmp_path):
    run = gk.train(recipe_of(tmp_path), out=tmp_path / "run")
    draws = gk.sample(run, labels=[3, 5], num_samples=20, seed=1)
    assert draws.labels.tolist() == [3, 5] * 10
    assert set(run.evaluation["classes"]) == {str(label) for label in range(10)}
