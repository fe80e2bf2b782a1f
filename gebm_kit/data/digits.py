"""The 1,797 handwritten digits of the UCI optical digits test set, shipped with the kit."""

from __future__ import annotations

import hashlib
from importlib import resources
from typing import cast

import numpy as np
import torch
from torch import Tensor

from gebm_kit.core.errors import DataError
from gebm_kit.core.interfaces import SplitName
from gebm_kit.data.readings import reading
from gebm_kit.data.tensors import TensorDataset

TEST_SHARE, VALID_SHARE = 2 / 9, 1 / 9
"""Shares of the rows: 399 are enough to score draws against, and 1,199 are left for training."""


class Digits(TensorDataset):
    """Grey images (1, 8, 8) in [-1, 1] of the digits 0 to 9, with labels: 1,199 train, 199 valid, 399 test.

    The split is fixed and stratified. The rows of each class are sorted by the SHA-256 of their pixels, which is as good as
    random and depends on nothing else. The first two ninths are for testing, the next ninth for validation. (The file
    itself is ordered by writer; dealing its rows out in turn would make the parts more alike than independent draws are.)
    The pixels are counts 0..16, mapped by ``x / 8 - 1``; no image occurs twice.

    References:
        Optical Recognition of Handwritten Digits. E. Alpaydin, C. Kaynak, UCI Machine Learning Repository, 1998
        (CC BY 4.0). https://doi.org/10.24432/C50P49

    Raises:
        DataError: the installed file is damaged.
    """

    def __init__(self) -> None:
        images, labels = _load()
        rows: dict[SplitName, list[Tensor]] = {"train": [], "valid": [], "test": []}
        order = sorted(range(len(images)), key=lambda row: hashlib.sha256(images[row].numpy().tobytes()).digest())
        shuffled = torch.tensor(order)
        for digit in range(10):
            of_class = shuffled[labels[shuffled] == digit]
            num_test, num_valid = round(TEST_SHARE * len(of_class)), round(VALID_SHARE * len(of_class))
            sizes = [num_test, num_valid, len(of_class) - num_test - num_valid]
            for part, chosen in zip(("test", "valid", "train"), of_class.split(sizes), strict=True):
                rows[cast(SplitName, part)].append(chosen)
        index = {part: torch.cat(chosen).sort().values for part, chosen in rows.items()}
        pixels = images.to(torch.float32).unsqueeze(1).div(8.0).sub(1.0)
        self._fill(
            {part: pixels[chosen] for part, chosen in index.items()},
            value_range=(-1.0, 1.0),
            labels={part: labels[chosen] for part, chosen in index.items()},
            num_classes=10,
        )

    def describe_reading(self) -> str:
        """Return one line about what was read."""
        return reading(self, "the digits shipped with the kit", "counts 0..16")


def _load() -> tuple[Tensor, Tensor]:
    """Read images (1797, 8, 8) uint8 and labels (1797,) int64, in the file's order."""
    file = resources.files("gebm_kit.data") / "files" / "digits.npz"
    try:
        with resources.as_file(file) as path, np.load(path, allow_pickle=False) as archive:
            images, labels = archive["images"], archive["labels"]
    except Exception as error:  # a missing file, a bad zip, a missing key: all mean a broken installation
        raise DataError(
            f"the digits shipped with gebm-kit can't be read: {error}", hint="Reinstall gebm-kit."
        ) from error
    return torch.from_numpy(images), torch.from_numpy(labels).to(torch.int64)
