"""The 1,797 handwritten digits of the UCI optical digits test set, shipped with the kit."""

from __future__ import annotations

from importlib import resources

import numpy as np
import torch
from torch import Tensor

from gebm_kit.core.errors import DataError
from gebm_kit.core.interfaces import SplitName
from gebm_kit.data.tensors import TensorDataset

PERIOD = 9
"""Every class is dealt out in this period: six rows to train, one to valid, two to test."""

TURN: tuple[SplitName, ...] = ("train", "train", "test", "train", "train", "valid", "train", "train", "test")


class Digits(TensorDataset):
    """Grey images (1, 8, 8) in [-1, 1] of the digits 0 to 9, with labels: 1,198 train, 201 valid, 398 test.

    The split is fixed and stratified: the rows of every class, in the order of the file, go in turn to
    train, train, test, train, train, valid, train, train, test. The pixels are counts 0..16, mapped by ``x / 8 - 1``.

    References:
        Optical Recognition of Handwritten Digits. E. Alpaydin, C. Kaynak, UCI Machine Learning Repository, 1998
        (CC BY 4.0). https://doi.org/10.24432/C50P49

    Raises:
        DataError: the installed file is damaged.
    """

    def __init__(self) -> None:
        images, labels = _load()
        rank = torch.empty_like(labels)  # how many rows of the same class come before
        for digit in range(10):
            rows = torch.nonzero(labels == digit).squeeze(1)
            # Classes start at different places of the period, so that the parts' sizes do not pile up roundings.
            rank[rows] = torch.arange(len(rows)) + digit
        turn = rank % PERIOD
        index = {part: torch.nonzero(_any_of(turn, part)).squeeze(1) for part in ("train", "valid", "test")}
        self._fill(
            {"train": images[index["train"]], "valid": images[index["valid"]], "test": images[index["test"]]},
            value_range=(-1.0, 1.0),
            labels={"train": labels[index["train"]], "valid": labels[index["valid"]], "test": labels[index["test"]]},
            num_classes=10,
        )


def _any_of(turn: Tensor, part: str) -> Tensor:
    places = torch.tensor([place for place, name in enumerate(TURN) if name == part])
    return torch.isin(turn, places)


def _load() -> tuple[Tensor, Tensor]:
    file = resources.files("gebm_kit.data") / "files" / "digits.npz"
    try:
        with resources.as_file(file) as path, np.load(path, allow_pickle=False) as archive:
            images, labels = archive["images"], archive["labels"]
    except Exception as error:  # a missing file, a bad zip, a missing key: all mean a broken installation
        raise DataError(
            f"the digits shipped with gebm-kit can't be read: {error}", hint="Reinstall gebm-kit."
        ) from error
    pixels = torch.from_numpy(images).to(torch.float32).unsqueeze(1).div_(8.0).sub_(1.0)
    return pixels, torch.from_numpy(labels).to(torch.int64)
