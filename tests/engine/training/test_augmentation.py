"""Augmentation of what the energy sees: the images it makes, their gradient, and training with it."""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from gebm_kit.config.augment import AUGMENTATIONS, parameters_of
from gebm_kit.config.build import build_dataset, resolved_yaml
from gebm_kit.config.check import check
from gebm_kit.config.load import load_recipe
from gebm_kit.config.schema import ComponentNode, Recipe
from gebm_kit.config.tree import parse
from gebm_kit.core.errors import Interrupted, RecipeError, UsageError
from gebm_kit.core.interfaces import Batch
from gebm_kit.core.progress import Progress
from gebm_kit.energies.codes import CodesEnergy
from gebm_kit.engine.train import train
from gebm_kit.engine.training.augmentation import KINDS, Augmentation, augmentations
from gebm_kit.engine.training.checkpoint_state import tensors_of
from gebm_kit.engine.training.final_phase import FinalParts
from gebm_kit.engine.training.trainer import Trainer

RECIPE = """\
schema: 1
data: {name: digits}
base: {name: dcgan, latent_dim: 3, width: 2}
energy: {name: conv, width: 2}
loss: {name: kale-dv}
train:
  steps: 6
  energy_steps: 2
  start_steps: 0
  batch_size: 16
  noise: 0.05
  penalty: [{name: r1, every: 2}, r2]
  log_every: 2
  checkpoint_every: 3
  final: {steps: 2}
ema: {decay: 0.9}
sample: {num_samples: 10, num_chains: 10, warmup: 1, steps: 1, thin: 1}
eval: {metrics: [sliced-wasserstein], num_samples: 10, num_sets: 2, log_partition: importance-sampling}
device: cpu
"""
ALL = "train.augment=[flip, translation, {name: cutout, probability: 1.0}]"
RANKS = 2

pytestmark = pytest.mark.filterwarnings("ignore::gebm_kit.core.progress.GebmKitWarning")


def augmentation(name: str, value_range: tuple[float, float] | None = (-1.0, 1.0), **given: float) -> Augmentation:
    return Augmentation([ComponentNode(name, parameters_of(AUGMENTATIONS[name](**given)))], value_range)


def images(rows: int = 400, shape: Sequence[int] = (3, 8, 9)) -> Tensor:
    return 2 * torch.rand(rows, *shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64) - 1


def seeded(seed: int = 1) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def recipe_of(*overrides: str, text: str = RECIPE) -> Recipe:
    return check(parse(text, name="toy", overrides=overrides), directory=Path())


def trainer_of(*overrides: str, text: str = RECIPE) -> Trainer:
    recipe = recipe_of(*overrides, text=text)
    torch.manual_seed(0)
    return Trainer(recipe, build_dataset(recipe), torch.device("cpu"))


def trained(*overrides: str, cycles: int = 8) -> dict[str, Tensor]:
    trainer = trainer_of(*overrides)
    trainer.initialise()
    for _ in range(cycles):
        trainer.cycle()
    found = {f"{part}/{name}": t.clone() for part, named in tensors_of(trainer).items() for name, t in named.items()}
    return {name: tensor for name, tensor in found.items() if name not in ("rng/torch", "model/log_partition")}


# --- the images ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", KINDS)
class TestEachKind:
    def test_it_keeps_shape_type_and_range(self, name: str) -> None:
        x = images()
        out = augmentation(name, probability=1.0)(x, seeded())
        assert out.shape == x.shape
        assert out.dtype == x.dtype
        assert float(out.min()) >= -1
        assert float(out.max()) <= 1
        assert not torch.equal(out, x)

    def test_it_depends_on_the_generator_alone(self, name: str) -> None:
        x, change = images(), augmentation(name)
        kept = x.clone()
        assert torch.equal(change(x, seeded()), change(x, seeded()))
        assert not torch.equal(change(x, seeded()), change(x, seeded(2)))
        assert torch.equal(x, kept)

    def test_it_takes_the_recipes_share_of_the_rows(self, name: str) -> None:
        x = images(4000)
        changed = (augmentation(name, probability=0.3)(x, seeded()) != x).flatten(1).any(1).double().mean()
        unmoved = 1 / 9 if name == "translation" else 0.0  # a shift of (0, 0) among 3 x 3
        assert abs(float(changed) - 0.3 * (1 - unmoved)) < 4.5 * 0.5 / 4000**0.5
        assert torch.equal(augmentation(name, probability=0.0)(x, seeded()), x)

    def test_the_gradient_reaches_the_image(self, name: str) -> None:
        x = images(3).requires_grad_()
        change = augmentation(name, probability=1.0)
        assert torch.autograd.gradcheck(lambda rows: change(rows, seeded()), x)

    def test_rows_differ(self, name: str) -> None:
        x = images(1).expand(50, -1, -1, -1)
        out = augmentation(name)(x, seeded()).flatten(1)
        assert len(out.unique(dim=0)) > 1


def test_the_kinds_of_the_recipe_are_those_that_exist() -> None:
    assert list(KINDS) == list(AUGMENTATIONS)


def test_a_shift_moves_pixels_and_repeats_the_edge() -> None:
    x = torch.arange(16.0).expand(200, 1, 16, 16)
    out = augmentation("translation", probability=1.0)(x, seeded())
    assert set(out[:, 0, 0, 8].tolist()) == {6.0, 7.0, 8.0, 9.0, 10.0}  # an eighth of 16
    assert set(out[:, 0, 0, 0].tolist()) == {0.0, 1.0, 2.0}
    assert bool((out.diff(dim=-1) >= 0).all())
    assert torch.equal(out, out[:, :, :1].expand_as(out))


def test_a_hole_is_half_the_side_and_of_the_middle_grey() -> None:
    x = torch.full((400, 1, 16, 12), 7.0)
    out = augmentation("cutout", (0.0, 10.0), probability=1.0)(x, seeded())
    assert set(out.unique().tolist()) == {5.0, 7.0}
    holes = (out == 5).sum((1, 2, 3))
    assert int(holes.max()) == 8 * 6
    assert int(holes.min()) >= 4 * 3  # around a corner
    assert set(augmentation("cutout", None, probability=1.0)(x, seeded()).unique().tolist()) == {0.0, 7.0}


def test_colours_move_towards_white_black_grey_and_the_mean() -> None:
    x = images(300)
    grey = augmentation("colour", brightness=0.0, contrast=0.0, saturation=1.0, probability=1.0)(x, seeded())
    assert torch.allclose(grey.mean(1), x.mean(1))
    assert bool((grey.std(1) <= x.std(1) + 1e-12).all())
    flat = augmentation("colour", brightness=0.0, saturation=0.0, contrast=1.0, probability=1.0)(x, seeded())
    assert torch.allclose(flat.mean((1, 2, 3)), x.mean((1, 2, 3)))
    light = augmentation("colour", saturation=0.0, contrast=0.0, probability=1.0)(x, seeded()) - x
    up = (light >= 0).flatten(1).all(1)
    assert bool((up ^ (light <= 0).flatten(1).all(1)).all())
    assert 0.4 < float(up.double().mean()) < 0.6


# --- the recipe ------------------------------------------------------------------------------------------------------


def test_names_and_parameters_are_read_and_written(tmp_path: Path) -> None:
    recipe = recipe_of("train.augment=[flip, {name: cutout, share: 0.25}]", "train.final.augment=[]")
    assert [node.as_dict() for node in recipe.train.augment] == [
        {"name": "flip", "probability": 0.5},
        {"name": "cutout", "share": 0.25, "probability": 0.5},
    ]
    assert recipe.final_augment == ()
    (tmp_path / "again.yaml").write_text(resolved_yaml(recipe))
    assert load_recipe(tmp_path / "again.yaml").train == recipe.train
    short = recipe_of("train.augment=flip")
    assert short.final_augment == short.train.augment == recipe.train.augment[:1]
    assert recipe_of("train.augment=null").train.augment == recipe_of().train.augment == ()


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("[flop]", r"train\.augment\[0\].*'flop' is not an augmentation.*flip"),
        ("[{name: cutout, shar: 0.1}]", r"train\.augment\[0\]\.shar: unknown key.*share"),
        ("[{name: cutout, share: 1.5}]", r"train\.augment\[0\]\.share: 1\.5 is out of range"),
        ("[3]", r"needs an augmentation.*flip, translation, cutout, colour"),
        ("{share: 0.5}", "needs an augmentation"),
        ("7", "needs an augmentation"),
    ],
)
def test_what_is_not_an_augmentation_is_refused(word: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        recipe_of(f"train.augment={word}")


def test_points_and_grey_images_are_refused() -> None:
    toy = RECIPE.replace("digits", "two-moons").replace("{name: dcgan, latent_dim: 3, width: 2}", "mlp")
    with pytest.raises(RecipeError, match=r"train\.augment changes images.*\(2,\)"):
        trainer_of("energy=mlp", "train.augment=[flip]", text=toy)
    with pytest.raises(RecipeError, match=r"train\.final\.augment changes images"):
        trainer_of("energy=mlp", "train.final.augment=[flip]", text=toy)
    trainer_of("energy=mlp", "train.final={steps: 0, augment: [flip]}", text=toy)
    with pytest.raises(RecipeError, match=r"colour changes images with 3 channels, but the data has 1"):
        trainer_of("train.augment=[colour]")


# --- training --------------------------------------------------------------------------------------------------------


def test_without_augmentation_no_random_number_is_drawn() -> None:
    plain, empty = trained(), trained("train.augment=[]", "train.final.augment=[]")
    assert [name for name in plain if not torch.equal(plain[name], empty[name])] == []
    x, generator = images(3), seeded()
    assert Augmentation([], None)(x, generator) is x
    assert torch.equal(generator.get_state(), seeded().get_state())
    other = trained(ALL)
    assert any(not torch.equal(plain[name], other[name]) for name in plain)


def same_law(batch: Batch) -> bool:
    """Tell whether equally large parts of data and base draws have a hole."""
    assert batch.x is not None
    shares = [float((rows == 0).flatten(2).float().mean(2).gt(0.05).float().mean()) for rows in (batch.x, batch.x_base)]
    return abs(shares[0] - shares[1]) < 0.1


HOLES = ("train.augment=[{name: cutout, share: 0.6}]", "train.noise=0.01", "train.batch_size=600")


def test_data_and_draws_get_the_same_kinds_in_both_steps() -> None:
    trainer = trainer_of(*HOLES)
    assert same_law(trainer.energy_batch())
    batch = trainer.base_batch(frozenset({"x", "x_base"}))
    assert same_law(batch)
    assert batch.x_base.requires_grad
    (grad,) = torch.autograd.grad(batch.x_base.sum(), next(iter(trainer.model.base.parameters())))
    assert bool((grad != 0).any())
    assert not same_law(Batch(batch.x, batch.z, trainer._plain.x_base if trainer._plain else batch.x_base))


def test_augmenting_the_data_alone_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """The broken twin: the check above tells it from the whole."""

    def broken(self: Trainer, plain: Batch) -> Batch:
        assert plain.x is not None
        return Batch(self._augmented(plain.x), plain.z, plain.x_base, plain.negatives)

    monkeypatch.setattr(Trainer, "_as_seen", broken)
    assert not same_law(trainer_of(*HOLES).energy_batch())


def test_an_energy_learns_nothing_from_augmentation_where_base_and_data_agree() -> None:
    """E stays flat for equal laws; with holes in the data alone it separates them by several nats."""
    x = images(2000, (1, 8, 8)).float()
    change = augmentation("cutout", probability=1.0)
    both = change(x[:1000], seeded(1)), change(x[1000:], seeded(2))

    def gap(first: Tensor, second: Tensor) -> float:
        values = [(rows == 0).float().mean((1, 2, 3)) for rows in (first, second)]
        return abs(float((values[0].mean() - values[1].mean()) / torch.cat(values).std()))

    assert gap(*both) < 0.15
    assert gap(both[0], x[1000:]) > 1


@pytest.mark.parametrize("loss", ["pcd", "{name: pcd, space: data, buffer_size: 64}", "cd"])
def test_negatives_are_augmented_too(loss: str) -> None:
    trainer = trainer_of("loss=" + loss, "train.augment=[{name: cutout, probability: 1.0}]", "train.noise=0.01")
    if trainer.negatives is not None:
        trainer.negatives.fill(trainer.model)
    batch, plain = trainer.energy_batch(), trainer._plain
    assert plain is not None
    assert batch.negatives is not None
    assert plain.negatives is not None
    assert bool(((batch.negatives == 0).flatten(1).sum(1) >= 4).all())
    assert bool(((plain.negatives == 0).flatten(1).sum(1) < 4).all())
    trainer.cycle()


def test_penalties_and_loss_see_the_same_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = trainer_of(ALL)
    seen: list[Tensor] = []
    for penalty in trainer.penalties:
        forward = penalty.forward

        def watched(energy: Any, batch: Batch, generator: torch.Generator, forward: Any = forward) -> Tensor:
            seen.append(batch.x_base)
            return torch.as_tensor(forward(energy, batch, generator))

        monkeypatch.setattr(penalty, "forward", watched)
    trainer.energy_step()
    assert trainer._seen is not None
    assert all(rows is trainer._seen.x_base for rows in seen)


def test_the_final_phase_has_its_own() -> None:
    trainer = trainer_of("train.final.augment=[{name: cutout, probability: 1.0}]", "train.noise=0", "train.steps=1")
    trainer.initialise()
    trainer.cycle()
    assert trainer._seen is not None
    assert trainer._plain is not None
    assert torch.equal(trainer._seen.x_base, trainer._plain.x_base)
    trainer.cycle()
    assert not torch.equal(trainer._seen.x_base, trainer._plain.x_base)
    kept = trained(ALL)
    plain = trained(ALL, "train.final.augment=[]")
    assert any(not torch.equal(kept[name], plain[name]) for name in kept)


@pytest.mark.usefixtures("quick_evaluation")
def test_a_resumed_run_is_the_same_to_the_last_bit(tmp_path: Path) -> None:
    def stop(progress: Progress) -> None:
        if progress.stage == "train" and progress.step == 4:
            os.kill(os.getpid(), signal.SIGTERM)

    path = tmp_path / "toy.yaml"
    path.write_text(RECIPE)
    straight = train(path, [ALL], out=tmp_path / "a")
    with pytest.raises(Interrupted):
        train(path, [ALL], out=tmp_path / "b", on_progress=stop)
    resumed = train(path, [ALL], out=tmp_path / "b", resume=True)
    one, two = (run.checkpoint.tensors["model"] for run in (straight, resumed))
    assert all(torch.equal(one[name], two[name]) for name in one)


def work(rank: int, ranks: int, folder: str) -> None:
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=ranks)
    torch.save(trained(ALL, "precision=float64", "base.norm=layer"), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_two_ranks_train_what_one_process_trains(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(work, args=(RANKS, str(tmp_path)), nprocs=RANKS)
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(RANKS))
    assert [name for name in first if not torch.equal(first[name], second[name])] == []
    alone = trained(ALL, "precision=float64", "base.norm=layer")
    for name in alone:
        assert torch.allclose(first[name].double(), alone[name].double(), rtol=1e-6, atol=1e-9), name


def test_an_energy_on_codes_is_refused() -> None:
    recipe, energy = recipe_of("train.final.augment=flip"), CodesEnergy([4], data_shape=(1, 8, 8))
    parts, dataset = FinalParts(None, energy, None), build_dataset(recipe)
    model = trainer_of().model
    with pytest.raises(UsageError, match=r"train\.final\.augment changes images, and the energy CodesEnergy sees"):
        augmentations(recipe, model, parts, dataset)
    augmentations(recipe, model, None, dataset)
