"""Classes as a file writes them: which texts are the same class, and which can't be classes.

Nothing is changed without a word: texts that look alike are refused, not joined.
"""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from gebm_kit.core.errors import DataError, shown
from gebm_kit.core.progress import warn

FEWEST_LABELS = 20
"""Fewest rows for which labels that hardly repeat are refused: they are row ids or measurements."""

FEWEST_REPEATS = 2
"""Fewest rows of a class on average; fewer are no classes."""


def check_repeated(classes: int, num: int, source: str = "") -> None:
    """Refuse labels that hardly repeat, such as row ids or measurements.

    Args:
        classes: number of different labels.
        num: number of rows.
        source: file and column, for the message.

    Raises:
        DataError: there are too many classes for the rows.
    """
    if num < FEWEST_LABELS or classes * FEWEST_REPEATS <= num:
        return
    where = f"{source}: " if source else ""
    if classes == num:
        raise DataError(
            f"{where}each of the {num} rows has a label of its own; labels say to which of a few classes rows belong"
        )
    raise DataError(
        f"{where}the {num} rows have {classes} different labels, fewer than {FEWEST_REPEATS} rows each; labels say to which "
        "of a few classes rows belong",
        hint="A column of measurements or of row ids holds no classes.",
    )


def class_indices(names: Sequence[str], source: str = "") -> tuple[Tensor, tuple[str, ...]]:
    """Turn labels as a file writes them into class indices, (N,) int64, and return what each class is called.

    Numbers come first, by value, then text in the order of its letters; ``1`` and ``1.0`` are the same class.

    Args:
        source: file and column, for messages.

    Raises:
        DataError: numbers are not whole, there are too many classes, or texts can't be told apart by a reader.

    Warns:
        GebmKitWarning: texts differ in case alone.
    """
    numbers = {name: _as_number(name) for name in set(names)}
    for name, value in sorted(numbers.items()):
        _check_spaces(name, source)
        if isinstance(value, float):
            raise DataError(
                f"{source}: a class is {shown(name)}, which is not a whole number; classes are whole numbers or text",
                hint="A column of measurements holds no classes.",
            )
    first: dict[int | str, str] = {}
    for name in sorted(numbers, key=lambda name: (len(name), name)):
        first.setdefault(_key(name, numbers[name]), name)
    check_texts((name for name in first.values() if numbers[name] is None), source)
    check_repeated(len(first), len(names), source)
    ordered = sorted(first.values(), key=lambda name: (numbers[name] is None, numbers[name] or 0, name))
    place = {name: index for index, name in enumerate(ordered)}
    of_name = {name: place[first[_key(name, value)]] for name, value in numbers.items()}
    return torch.tensor([of_name[name] for name in names]), tuple(ordered)


def check_texts(names: Iterable[str], source: str) -> None:
    """Check texts that name classes.

    Raises:
        DataError: a text has spaces around it or letters that can't be seen; or two differ in spaces or in how their letters
            are encoded alone.

    Warns:
        GebmKitWarning: two differ in case alone.
    """
    alike: dict[str, list[str]] = {}
    for name in sorted(names):
        _check_spaces(name, source)
        if any(unicodedata.category(letter) in ("Cc", "Cf", "Cs", "Co", "Cn") for letter in name):
            raise DataError(f"{source}: the class {ascii(name)[:60]} holds letters that can't be seen")
        alike.setdefault(_as_read(name), []).append(name)
    for same in alike.values():
        if len(same) > 1:
            raise DataError(
                f"{source}: the classes {ascii(same[0])[:60]} and {ascii(same[1])[:60]} look the same: they differ in "
                "spaces or in how their letters are encoded",
                hint="Write them alike, or as different words.",
            )
    folded = Counter(name.casefold() for name in alike)
    if cases := [same[0] for name, same in alike.items() if folded[name.casefold()] > 1]:
        listed = ", ".join(map(repr, cases[:6]))
        warn(f"{source}: the classes {listed} differ in upper and lower case alone; each is a class of its own")


def _as_read(name: str) -> str:
    """Return a text as a reader sees it: letters in one encoding, and one space between words."""
    return " ".join(unicodedata.normalize("NFKC", name).split())


def _check_spaces(name: str, source: str) -> None:
    if not name:
        raise DataError(f"{source}: the name of a class is empty")
    if name != name.strip():
        raise DataError(f"{source}: the class {shown(name)} has spaces around it", hint="Take them away in the data.")


def _key(name: str, value: int | float | None) -> int | str:
    return value if isinstance(value, int) else name


def _as_number(name: str) -> int | float | None:
    """Return the number that a text is: an int if it is whole, however written; None for other text."""
    if "_" in name or not name.isascii():
        return None
    try:
        return int(name)
    except ValueError:
        pass
    try:
        value = float(name)
    except ValueError:
        return None
    if value != value:
        return None
    return int(value) if value.is_integer() else value
