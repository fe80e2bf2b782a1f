"""Two ranks train what one process trains and hold the same state; what they can't do is refused."""

from __future__ import annotations

import math
import os
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing
from torch import Tensor

from gebm_kit.config.build import build_dataset
from gebm_kit.config.check import check
from gebm_kit.config.schema import Recipe
from gebm_kit.config.tree import parse
from gebm_kit.core import reduce
from gebm_kit.core.errors import UsageError
from gebm_kit.core.progress import GebmKitWarning, ignore
from gebm_kit.engine.process import data_parallel as parallel
from gebm_kit.engine.process.distributed import joined_ranks
from gebm_kit.engine.training.checkpoint_state import tensors_of
from gebm_kit.engine.training.starting_state import begin
from gebm_kit.engine.training.trainer import Trainer

RANKS, STEPS = 2, 20

TOY = """\
schema: 1
data: {name: eight-gaussians, num_train: 300, num_valid: 100, num_test: 100}
base: {name: mlp, latent_dim: 3, hidden: [16]}
energy: {name: mlp, hidden: [16]}
loss: {name: kale}
train:
  steps: 16
  energy_steps: 2
  start_steps: 2
  start_energy_steps: 4
  batch_size: 32
  noise: 0.05
  clip_grad_norm: 1.0
  penalty: {name: gradient, every: 2}
  final: {steps: 4, batch_size: 48}
optim: {energy: {lr: 0.01}, base: {lr: 0.005}}
ema: {decay: 0.9}
precision: float64
device: cpu
"""

OF_THE_RANK = ("rng/torch", "model/log_partition", "model/class_log_partition")

LOSSES = {"kale": "kale", "kale-adam": "{name: kale, update: adam}", "kale-dv": "kale-dv", "logistic": "logistic"}


def toy(*overrides: str) -> Recipe:
    return check(parse(TOY, name="toy", overrides=overrides), directory=Path())


def trainer_of(recipe: Recipe) -> Trainer:
    torch.manual_seed(0)
    trainer = Trainer(recipe, build_dataset(recipe), torch.device("cpu"))
    trainer.initialise()
    return trainer


def trained(recipe: Recipe, steps: int = STEPS) -> dict[str, Tensor]:
    """Return every tensor of the state that a checkpoint would hold after ``steps`` cycles.

    Torch's own generator is left out, and so are the log-partitions, which are unknown until a checkpoint is saved.
    """
    trainer = trainer_of(recipe)
    for _ in range(steps):
        trainer.cycle()
    found = {f"{part}/{name}": t for part, named in tensors_of(trainer).items() for name, t in named.items()}
    return {name: tensor.clone() for name, tensor in found.items() if name not in OF_THE_RANK}


PROJECTED = (
    "data={name: digits}",
    "base={name: mlp, latent_dim: 3, hidden: [8]}",
    "energy={name: projected, width: 2, dim: 4, hidden: [4], steps: 5}",
)


CONDITIONAL = (
    "data.labels=true",
    "base.conditional=true",
    "energy.conditional=true",
    "train.penalty={name: r1, every: 2}",
)
CLASSES = {"classes": CONDITIONAL, "weights": (*CONDITIONAL, "data.class_weights=[1,2,0,4,3,1,1,2]")}


def begun(recipe: Recipe) -> dict[str, Tensor]:
    """Return the model's tensors after 3 cycles from `begin`, in which only the first rank fits the energy to the data."""
    dataset = build_dataset(recipe)
    torch.manual_seed(0)
    trainer = Trainer(recipe, dataset, torch.device("cpu"))
    with joined_ranks(torch.device("cpu"), "training") as ranks:
        begin(trainer, None, ranks, dataset, ignore)
        for _ in range(3):
            trainer.cycle()
    return {name: tensor.clone() for name, tensor in trainer.model.state_dict().items() if name != "log_partition"}


def averaged_logsumexp(values: Tensor) -> Tensor:
    """Make the mistake: average each rank's own log-mean-exp over the ranks, with importance weights of each rank alone."""
    local = torch.logsumexp(values, dim=0)
    average = local.detach().clone()
    reduce.all_reduce(average)
    return local - local.detach() + average / RANKS + math.log(RANKS)


def work(rank: int, ranks: int, folder: str) -> None:
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=ranks)
    seen = {name: trained(toy(f"loss={loss}")) for name, loss in LOSSES.items()}
    seen["batch norm"] = trained(toy("base.norm=batch"))
    stopping = ["base={name: vae, latent_dim: 3, hidden: [16]}", "train.part=base-then-energy"]
    seen["early stopping"] = trained(toy(*stopping, "train.pretrain={steps: 60, eval_every: 3}"))
    seen["projected"] = begun(toy(*PROJECTED))
    seen |= {name: trained(toy(*words)) for name, words in CLASSES.items()}
    right = reduce.logsumexp
    reduce.logsumexp = averaged_logsumexp
    for name, loss in LOSSES.items():
        seen[f"mistaken {name}"] = trained(toy(f"loss={loss}"))
    reduce.logsumexp = right
    torch.save(seen, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def by_rank(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, dict[str, Tensor]]]:
    folder = tmp_path_factory.mktemp("ranks")
    torch.multiprocessing.spawn(work, args=(RANKS, str(folder)), nprocs=RANKS)
    return [torch.load(folder / f"{rank}.pt") for rank in range(RANKS)]


def gap(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    """Return the largest difference between two states."""
    assert one.keys() == other.keys()
    return max(float((one[name].double() - other[name].double()).abs().max()) for name in one if one[name].numel())


@pytest.mark.parametrize("loss", LOSSES)
def test_two_ranks_train_what_one_process_trains(loss: str, by_rank: list[dict[str, dict[str, Tensor]]]) -> None:
    """The whole state is compared: weights, averages, optimisers, log-partition, generator and position in the data.

    Training has a penalty, noise, clipping and a final phase.
    """
    alone, start = (trained(toy(f"loss={LOSSES[loss]}"), steps) for steps in (STEPS, 0))
    for name in ("energy.layers.0.weight", "base.layers.0.weight"):
        assert float((alone[f"model/{name}"] - start[f"model/{name}"]).abs().max()) > 0.01
    for seen in by_rank:
        assert gap(alone, seen[loss]) < 1e-9
        assert gap(alone, seen[f"mistaken {loss}"]) > 1e-6


@pytest.mark.parametrize("name", CLASSES)
def test_two_ranks_train_a_model_with_classes_as_one_process_does(
    name: str, by_rank: list[dict[str, dict[str, Tensor]]]
) -> None:
    alone = trained(toy(*CLASSES[name]))
    for seen in by_rank:
        assert gap(alone, seen[name]) < 1e-9
    assert gap(alone, trained(toy(*CLASSES["weights" if name == "classes" else "classes"]))) > 0.01


@pytest.mark.parametrize(
    ("key", "ok"), [("train.batch_size=63", False), ("train.final.batch_size=47", False), ("ema.decay=0", True)]
)
def test_a_batch_that_the_ranks_can_not_share_is_refused(key: str, ok: bool) -> None:
    if ok:
        parallel.check_batches(toy(key), 2)
        return
    size = int(key.partition("=")[2])
    with pytest.raises(UsageError, match=f"{key} can't be shared evenly by 2 processes") as caught:
        parallel.check_batches(toy(key), 2)
    assert f"={size - 1} or {size + 1}," in caught.value.hint


def test_a_batch_norm_needs_two_rows_on_every_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reduce, "world_size", lambda: 16)
    model = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.BatchNorm1d(3))
    with pytest.raises(UsageError, match="each of 16 processes has 1 of a batch"):
        parallel.synchronise_batch_norm(model, torch.device("cpu"), 1)
    with pytest.warns(GebmKitWarning, match="normalises its own 2 rows"):
        assert parallel.synchronise_batch_norm(model, torch.device("cpu"), 2) is model
    converted = parallel.synchronise_batch_norm(model, torch.device("cuda"), 1)
    assert isinstance(converted[1], torch.nn.SyncBatchNorm)
    assert list(converted.state_dict()) == list(model.state_dict())


@pytest.mark.parametrize("size", [1, 100, 10**9])
def test_gradients_are_averaged_in_buckets(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Buckets may have any size, gradients several dtypes and memory layouts; parameters without a gradient keep none."""
    monkeypatch.setattr(parallel, "BUCKET_BYTES", size)
    monkeypatch.setattr(reduce, "world_size", lambda: 4)
    monkeypatch.setattr(reduce, "all_reduce", lambda tensor: tensor.mul_(3))
    shapes = [(3, 4, 2, 2), (5,), (), (2, 3)]
    parameters = [
        torch.nn.Parameter(torch.zeros(shape, dtype=kind))
        for shape in shapes
        for kind in (torch.float32, torch.float64)
    ]
    for parameter in parameters[:-1]:
        parameter.grad = torch.randn_like(parameter)
    parameters[0].grad = parameters[0].grad.contiguous(memory_format=torch.channels_last)
    before = [p.grad.clone() for p in parameters[:-1]]
    parallel.average_gradients(parameters)
    assert parameters[-1].grad is None
    for parameter, grad in zip(parameters, before, strict=False):
        torch.testing.assert_close(parameter.grad, 0.75 * grad)


@pytest.mark.parametrize("name", [*LOSSES, *CLASSES, "batch norm", "early stopping", "projected"])
def test_the_ranks_hold_the_same_state_to_the_last_bit(name: str, by_rank: list[dict[str, dict[str, Tensor]]]) -> None:
    first, second = (seen[name] for seen in by_rank)
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert (name == "early stopping") == any(key.startswith("best-base/") for key in first)


def test_an_energy_is_fitted_by_the_first_rank_for_all(by_rank: list[dict[str, dict[str, Tensor]]]) -> None:
    alone = begun(toy(*PROJECTED))
    assert bool(alone["energy.fitted"])
    assert float(alone["energy.std"].min()) < 1.0
    for seen in by_rank:
        assert gap(alone, seen["projected"]) < 1e-9
