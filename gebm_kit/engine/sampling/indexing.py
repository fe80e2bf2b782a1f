"""Indices of draws: a slice, a mask, or a list of places."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from gebm_kit.core.errors import UsageError
from gebm_kit.core.frames import plain_values


def place_of(which: object, num: int) -> int | None:
    """Return the place that a whole number means, counted from the end if it is negative; None for anything else.

    Raises:
        IndexError: there is no such draw.
    """
    if isinstance(which, Tensor | np.ndarray) and which.ndim == 0 and which.dtype not in (torch.bool, np.bool_):
        which = which.item()
    if not isinstance(which, int | np.integer) or isinstance(which, bool):
        return None
    place = int(which) + (num if which < 0 else 0)
    if not 0 <= place < num:
        raise IndexError(f"there is no draw {int(which)} among {num}")
    return place


def places_of(which: Any, num: int) -> Tensor:
    """Return the places that a slice, a mask or a list of whole numbers means, (M,) int64.

    Raises:
        UsageError: it is something else, or a mask of another length.
        IndexError: there is no such draw.
    """
    if isinstance(which, slice):
        return torch.arange(num)[which] if (which.step or 1) > 0 else torch.tensor(range(num)[which], dtype=torch.int64)
    given = plain_values(which)
    if isinstance(given, list | tuple | range):
        whole = all(isinstance(item, int | np.integer) for item in given)
        given = torch.tensor(list(given), dtype=torch.int64 if not len(given) else None) if whole else given
    if isinstance(given, np.ndarray) and given.dtype.kind in "biu":
        given = torch.from_numpy(given.astype(bool if given.dtype.kind == "b" else np.int64))
    if not isinstance(given, Tensor) or given.ndim != 1 or given.is_floating_point() or given.is_complex():
        raise UsageError(
            f"draws are indexed by a whole number, a slice, a mask or a list of whole numbers, got {type(which).__name__}",
            hint="draws[0] is one draw; draws[:10] and draws[draws.labels == 3] are draws again. For values, draws.x[...].",
        )
    given = given.cpu()
    if given.dtype == torch.bool:
        if len(given) != num:
            raise UsageError(f"a mask of {len(given)} entries does not fit {num} draws")
        return given.nonzero().flatten()
    places = given.long()
    places = places + num * (places < 0)
    outside = given[(places < 0) | (places >= num)]
    if len(outside):
        raise IndexError(f"there is no draw {int(outside[0])} among {num}")
    return places
