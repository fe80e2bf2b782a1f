"""The rows of a dataset by class."""

from __future__ import annotations

import torch
from torch import Tensor

from gebm_kit.core import contracts
from gebm_kit.core.attribution import describe
from gebm_kit.core.errors import UsageError
from gebm_kit.core.interfaces import Dataset, HasLabels, Split, SplitName
from gebm_kit.core.progress import warn

FEW = 0.1
"""Share of a part's rows below which a warning says that the classes' shares leave few."""


class Rows(Split):
    """Some rows of a split, by their indices, (M,)."""

    def __init__(self, split: Split, indices: Tensor) -> None:
        self._split, self._indices = split, indices

    def __len__(self) -> int:
        return len(self._indices)

    def batch(self, indices: Tensor) -> Tensor:
        return self._split.batch(self._indices[indices])


class OneClass(Rows):
    """The rows of a split that have one label."""

    def __init__(self, split: Split, labels: Tensor, label: int) -> None:
        super().__init__(split, (labels == label).nonzero().squeeze(1))


def labels_of(dataset: Dataset, part: SplitName, num_classes: int) -> Tensor:
    """Return the labels of a part of the data that a model of ``num_classes`` classes works on, (N,) int64 on the CPU.

    Raises:
        UsageError: the dataset has no labels, or another number of classes.
        PluginError: it returns no labels of the kind that it must.
    """
    if not isinstance(dataset, HasLabels):
        raise UsageError(
            f"the model has {num_classes} classes, and {describe(dataset, 'dataset')} has no labels",
            hint=f"{dataset.how_to_label} Or leave conditional out of base and energy.",
        )
    if dataset.num_classes != num_classes:
        raise UsageError(f"the model has {num_classes} classes, and the dataset has {dataset.num_classes}")
    labels = dataset.labels(part)
    contracts.check_labels(dataset, labels, len(dataset.split(part)), part)
    return labels.cpu()


def rows_in_shares(labels: Tensor, weights: Tensor) -> Tensor:
    """Return the indices of as many rows as possible with each class in its share, none twice, ascending, (M,).

    Rows of a class are taken evenly spaced. A class without rows is left out; the others keep their ratios.

    Args:
        labels: classes of all rows, (N,).
        weights: shares of the classes, (K,).
    """
    counts = torch.bincount(labels, minlength=len(weights))
    wanted = torch.where(counts > 0, weights.detach().double().cpu(), 0.0)
    if not bool(wanted.any()):
        return torch.empty(0, dtype=torch.int64)
    wanted = wanted / wanted.sum()
    most = int((counts[wanted > 0] / wanted[wanted > 0]).min() + 1e-9)
    chosen = []
    members = labels.argsort(stable=True).split(counts.tolist())
    for own, number in zip(members, apportioned(wanted, most), strict=True):
        number = min(number, len(own))  # a remainder may ask for one more
        chosen.append(own[torch.arange(number) * len(own) // max(number, 1)])
    return torch.cat(chosen).sort().values


class InShares(Dataset):
    """A dataset with the classes in given shares: of each part as many rows as possible, none twice.

    Args:
        dataset: a dataset with labels.
        weights: shares of the classes, (K,).
    """

    def __init__(self, dataset: Dataset, weights: Tensor) -> None:
        self.data_shape, self.value_range = dataset.data_shape, dataset.value_range
        self._dataset, self._weights = dataset, weights

    def split(self, name: SplitName) -> Split:
        labels = labels_of(self._dataset, name, len(self._weights))
        chosen = rows_in_shares(labels, self._weights)
        if not len(chosen):
            raise UsageError(f"the {name} part has no row of a class whose weight is above 0")
        if len(chosen) < FEW * len(labels):
            warn(
                f"only {len(chosen):,} of the {len(labels):,} rows of the {name} part have the classes in the shares of "
                "data.class_weights; scores of all classes are noisy, and those of each class are not"
            )
        return Rows(self._dataset.split(name), chosen)


def apportioned(weights: Tensor, num: int) -> list[int]:
    """Divide ``num`` among classes in proportion to their weights, (K,), by largest remainders."""
    shares = weights.detach().double().cpu() / weights.double().sum().cpu() * num
    counts = shares.floor().long()
    rest = (shares - counts).argsort(descending=True, stable=True)[: num - int(counts.sum())]
    counts[rest] += 1
    found: list[int] = counts.tolist()
    return found


def labels_in_shares(weights: Tensor, num: int) -> Tensor:
    """Return ``num`` labels in proportion to the classes' weights, sorted, (num,) int64."""
    counts = torch.tensor(apportioned(weights, num))
    return torch.arange(len(counts)).repeat_interleave(counts)
