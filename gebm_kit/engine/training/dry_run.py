"""The cost of a training run, estimated without making one; its components are checked as before a real run."""

from __future__ import annotations

import time
from typing import Any

import torch
from torch import Tensor

from gebm_kit.config.build import how_to_label
from gebm_kit.config.class_keys import name_classes
from gebm_kit.config.schema import Recipe
from gebm_kit.core.attribution import attributed
from gebm_kit.core.errors import DataError
from gebm_kit.core.expected import Expected, IsPublished
from gebm_kit.core.interfaces import Dataset, Split, SplitName, named_scalars
from gebm_kit.core.paths import user_path
from gebm_kit.core.pixels import scale_bytes
from gebm_kit.core.plugins import installed
from gebm_kit.core.progress import warn
from gebm_kit.engine.datasets.contract import check_dataset
from gebm_kit.engine.datasets.open import open_dataset
from gebm_kit.engine.datasets.prepared_cache import PreparedDataset
from gebm_kit.engine.evaluation.contract import check_values
from gebm_kit.engine.evaluation.feature_maps import FeatureSettings
from gebm_kit.engine.evaluation.metrics import check_metrics
from gebm_kit.engine.process import data_parallel
from gebm_kit.engine.process.devices import resolve_device
from gebm_kit.engine.process.distributed import joined_ranks
from gebm_kit.engine.process.memory import enough_memory
from gebm_kit.engine.process.torchrun import local_device
from gebm_kit.engine.sampling.gradient_cost import gradient_cost, held_weights
from gebm_kit.engine.training.contract import check_training
from gebm_kit.engine.training.loggers import check_loggers
from gebm_kit.engine.training.starting_state import start_from
from gebm_kit.engine.training.trainer import Trainer

SLOW_CYCLE_SECONDS = 5.0
"""A cycle that takes longer than this is not repeated: it alone is the measurement."""


def plan(recipe: Recipe, *, device: str | None = None, cycles: int = 5) -> dict[str, Any]:
    """Return what a run would cost, without making one: parameters, memory, measured cycles per second, total time.

    Raises:
        DataError, UsageError, PluginError: as in `train`.
    """
    where = resolve_device(local_device(device or recipe.device))
    with joined_ranks(where, "training") as ranks, attributed(), ranks.together():
        data_parallel.check_ranks(recipe, device, ranks)
        return _plan(recipe, where, cycles)


def _plan(recipe: Recipe, where: torch.device, cycles: int) -> dict[str, Any]:
    check_loggers(recipe)
    dataset = _dataset(recipe)
    check_dataset(dataset, disjoint=not isinstance(dataset, StandIn))
    metrics = check_metrics(recipe, dataset)
    with torch.random.fork_rng(devices=[where] if where.type == "cuda" else []):
        torch.manual_seed(recipe.train.seed)
        trainer = Trainer(recipe, dataset, where)
        start_from(trainer, recipe)
        check_training(trainer, dataset)
        check_values(metrics, trainer.model, dataset, FeatureSettings.of(recipe), where)
        if trainer.negatives is not None:
            trainer.negatives.fill(trainer.model)
        # a usual cycle: after the longer ones at the start, and after the one that enters the main phase
        usual = recipe.train.pretrain_steps + min(max(recipe.train.start_steps, 1), recipe.train.steps - 1)
        rate = _rate(trainer, usual, 1)  # also allocates and starts threads: negligible in a slow cycle
        if rate * SLOW_CYCLE_SECONDS > 1:
            rate = _rate(trainer, usual, 1)
        if rate * SLOW_CYCLE_SECONDS > 1:
            rate = _rate(trainer, usual, cycles)
        with enough_memory(where, "with one gradient", "A base may have a block_size, or recompute activations."):
            gradient = gradient_cost(trainer.model)
        counts, memory, seconds = parameter_counts(trainer), memory_estimate(trainer), recipe.train.total_steps / rate
        if trainer.final is not None:  # its cycles cost something else
            seconds = recipe.train.main_end / rate + recipe.train.final.steps / _final_rate(trainer, cycles)
    return {
        "recipe": recipe.name,
        "parameters": counts,
        "memory_bytes": memory,
        "gradient": gradient,
        "device": str(where),
        "steps": recipe.train.total_steps,
        "steps_per_second": rate,
        "seconds": seconds,
        "data": {
            "shape": list(dataset.data_shape),
            "train": len(dataset.split("train")),
            "prepared": str(dataset.folder) if isinstance(dataset, PreparedDataset) else None,
            "stand_in": isinstance(dataset, StandIn),
        },
    }


def _dataset(recipe: Recipe) -> Dataset:
    try:
        return open_dataset(recipe)
    except DataError as error:
        found = stand_in(recipe)
        if found is None:
            raise
        warn(f"{error.message}; the dry run uses random images of the published shape and number")
        name_classes(found, recipe.class_names, how_to_label(recipe))
        return found


def _rate(trainer: Trainer, step: int, cycles: int) -> float:
    """Return cycles per second, measured by repeating the cycle after ``step``."""
    start = time.monotonic()
    for _ in range(cycles):
        trainer.step = step
        metrics = trainer.cycle()
    dict(named_scalars(metrics))  # waits for the device
    return cycles / (time.monotonic() - start)


def _final_rate(trainer: Trainer, cycles: int) -> float:
    """Return cycles per second of the final phase, which the trainer enters."""
    first = trainer.settings.main_end
    rate = _rate(trainer, first, 1)
    return _rate(trainer, first + 1, cycles) if rate * SLOW_CYCLE_SECONDS > 1 else rate


def parameter_counts(trainer: Trainer) -> dict[str, int]:
    """Return the numbers of parameters of base and energy, and of a new energy of the final phase."""
    parts = {"base": trainer.model.base, "energy": trainer.model.energy}
    if trainer.final is not None and trainer.final.energy is not None:
        parts["final_energy"] = trainer.final.energy
    return {name: sum(p.numel() for p in part.parameters()) for name, part in parts.items()}


def memory_estimate(trainer: Trainer) -> int:
    """Return the bytes of weights, gradients, optimiser states, moving average and resident data, without activations."""
    states = [
        value
        for optimizer in (trainer.energy_optimizer, trainer.base_optimizer)
        for entries in optimizer.state.values()
        for value in entries.values()
        if isinstance(value, Tensor)
    ]
    tensors = [*trainer.model.state_dict().values(), *states, *trainer.model.parameters()]
    tensors += [*held_weights(trainer.model.base), *held_weights(trainer.model.energy)]
    if trainer.ema is not None:
        tensors += list(trainer.ema.state_dict().values())
    if trainer.final is not None:
        tensors += list(trainer.final.tensors().values())
    return sum(t.numel() * t.element_size() for t in tensors) + trainer.feed.resident_bytes


STAND_IN_IMAGES = 1024
"""Number of images that are drawn; further rows repeat them. The values of the images don't change what a cycle costs."""


class StandIn(Dataset):
    """Dataset of random bytes scaled to [-1, 1], with the expected shape and number; all three parts are the same."""

    num_classes: int
    class_names: tuple[str, ...]

    def __init__(self, expected: Expected) -> None:
        self.data_shape = expected.shape
        self.value_range = (-1.0, 1.0)
        self._split = _Repeated(expected)
        if expected.num_classes is not None:
            self.num_classes = expected.num_classes
            if expected.class_names is not None:
                self.class_names = expected.class_names

    def split(self, name: SplitName) -> Split:
        return self._split

    def labels(self, name: SplitName) -> Tensor:
        """Return each class index in turn, (N,) int64."""
        return torch.arange(len(self._split)) % self.num_classes


class _Repeated(Split):
    def __init__(self, expected: Expected) -> None:
        self._num = expected.train
        generator = torch.Generator().manual_seed(0)
        self._rows = torch.randint(0, 256, (STAND_IN_IMAGES, *expected.shape), generator=generator, dtype=torch.uint8)

    def __len__(self) -> int:
        return self._num

    def batch(self, indices: Tensor) -> Tensor:
        return self.decode(self.stored(indices))

    def stored(self, indices: Tensor | None) -> Tensor:
        return self._rows[(torch.arange(self._num) if indices is None else indices) % STAND_IN_IMAGES]

    def decode(self, stored: Tensor) -> Tensor:
        return scale_bytes(stored)


def stand_in(recipe: Recipe) -> StandIn | None:
    """Return random images like the recipe's published data, for a ``data.path`` that does not exist.

    The result is None if the recipe has no ``data.path``, if it exists, or if the data are not published ones.
    """
    path = recipe.data.parameters.get("path")
    if path is None or (recipe.directory / user_path(path, error=DataError)).exists():
        return None
    target: object = installed().registry.get("dataset", recipe.data.name).load()
    expected = target.expected(recipe.data.parameters) if isinstance(target, IsPublished) else None
    return None if expected is None else StandIn(expected)
