"""The rows of a dataset that draws are scored against, and the scorer that holds them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from gebm_kit.core.interfaces import Dataset, Metric, Split
from gebm_kit.core.model import GEBM
from gebm_kit.core.progress import OnProgress, ignore
from gebm_kit.engine.datasets.held_out import HeldOut, evenly_spaced_rows, floor_sets
from gebm_kit.engine.evaluation.feature_maps import FeatureMaps
from gebm_kit.engine.evaluation.score_table import Scorer
from gebm_kit.engine.evaluation.settings import FLOOR_PART, EvaluationSettings


@dataclass(frozen=True)
class DataRows:
    """Rows of the dataset, (N, *D) on the CPU.

    Attributes:
        reference: the rows that draws are scored against.
        train: training data, or None.
        held_out: the rows of the floor, and `floor`, the sets that they are divided into.
    """

    reference: Tensor
    train: Tensor | None
    held_out: Tensor
    floor: list[Tensor]


def data_rows(dataset: Dataset, metrics: Mapping[str, Metric], settings: EvaluationSettings) -> DataRows:
    """Read the rows that draws are scored against, and the held-out rows of the floor."""
    part, floor_part = settings.reference, FLOOR_PART[settings.reference]
    reference = evenly_spaced_rows(dataset.split(part), f"{part} data", settings.num_reference)
    wanted = any(m.needs_train or (settings.against_train and m.against_train) for m in metrics.values())
    train = train_rows(dataset, settings.num_reference) if wanted else None
    held_out = evenly_spaced_rows(dataset.split(floor_part), f"{floor_part} data")
    return DataRows(reference, train, held_out, floor_sets(held_out, settings.num_samples, settings.num_sets))


def train_rows(dataset: Dataset, limit: int) -> Tensor | None:
    """Read at most ``limit`` training rows, evenly spaced; None for held-out rows that came without a training part."""
    split = train_split(dataset)
    return None if split is None else evenly_spaced_rows(split, "train data", limit)


def train_split(dataset: Dataset) -> Split | None:
    """Return the training part; None for held-out rows that came without one."""
    return None if isinstance(dataset, HeldOut) else dataset.split("train")


def place_of(where: torch.device) -> torch.device:
    """Return where metrics compute: in float64, which only CUDA has besides the CPU."""
    return where if where.type == "cuda" else torch.device("cpu")


def scorer_of(
    model: GEBM,
    dataset: Dataset,
    rows: DataRows,
    settings: EvaluationSettings,
    seed: int,
    where: torch.device,
    on_progress: OnProgress = ignore,
) -> tuple[Scorer, list[Tensor]]:
    """Bring rows to where metrics compute; return the scorer, and the sets of the floor."""
    place = place_of(where)
    floor = [samples.to(place) for samples in rows.floor]
    reference, train = rows.reference.to(place), None if rows.train is None else rows.train.to(place)
    constant = [*floor, reference, *([] if train is None else [train])]
    features = FeatureMaps(dataset, where, settings.features, constant, on_progress)
    return Scorer(model, dataset, reference, features, seed, train, settings.against_train), floor
