"""Names of classes: what the data call each class, and the class that a word means.

A whole number always means an index, any other word a name. This file does not import torch.
"""

from __future__ import annotations

from collections.abc import Sequence

from gebm_kit.core.errors import UsageError, nearest, shown
from gebm_kit.core.progress import warn

ALL = "all"
"""The word for all classes, as many draws of each."""

LONGEST_LABEL = 9
"""Most digits of a class in a word."""


def class_names_of(dataset: object) -> tuple[str, ...] | None:
    """Return what a dataset calls its classes; None where it has no labels, or where names would repeat the indices."""
    names = getattr(dataset, "class_names", None)
    if not names or tuple(names) == tuple(map(str, range(len(names)))):
        return None
    return tuple(map(str, names))


def titled(label: int, names: Sequence[str] | None) -> str:
    """Return a class for a person: ``3 (dress)``, or ``3`` where classes have no names."""
    return str(label) if names is None else f"{label} ({names[label]})"


def labels_of_word(word: str, names: Sequence[str] | None) -> list[int] | str:
    """Read the word of an option: ``all``, or classes with commas between them, each by its index or its name.

    Args:
        names: what the classes are called, or None.

    Raises:
        UsageError: it is something else, there is no class of a name, or the word can be read in two ways.
    """
    known = tuple(names or ())
    parts = [part.strip() for part in word.split(",")]
    if word == ALL:
        if ALL in known:
            raise _two_readings(word, "every class", known)
        return ALL
    if word in known and len(parts) > 1:
        if all(part in known or _is_index(part) for part in parts):
            raise _two_readings(word, f"the classes {', '.join(parts)}", known)
        return [known.index(word)]
    if not all(_is_index(part) or part in known for part in parts):
        raise _no_such(word, parts, known)
    for part in parts:
        if _is_index(part) and part in known and known.index(part) != int(part) < len(known):
            warn(f"--class {part} is the index {part}, the class called {known[int(part)]!r}; a number means an index")
    return [int(part) if _is_index(part) else known.index(part) for part in parts]


def labels_of_words(words: Sequence[str], names: Sequence[str] | None) -> list[int] | str:
    """Read the words of an option that may be given several times: the classes of every word, in their order.

    Raises:
        UsageError: as for `labels_of_word`, or ``all`` is one of several words.
    """
    found = [labels_of_word(word, names) for word in words]
    if len(found) == 1:
        return found[0]
    if ALL in found:
        raise UsageError(
            f"--class is given {len(words)} times, once as {ALL!r}",
            hint=f"Give {ALL} alone, which stands for every class.",
        )
    return [label for labels in found if not isinstance(labels, str) for label in labels]


def _is_index(part: str) -> bool:
    return part.isdecimal() and part.isascii() and len(part) <= LONGEST_LABEL


def _no_such(word: str, parts: Sequence[str], names: Sequence[str]) -> UsageError:
    allowed = "a class such as 7, classes such as 3,5, or all"
    wrong = next(part for part in parts if not _is_index(part) and part not in names)
    if not names or not wrong:
        return UsageError(f"--class is {word!r}; allowed: {allowed}")
    return UsageError(
        f"--class is {word!r}, and there is no class {shown(wrong)}; {nearest(wrong, names)}",
        hint=f"Allowed: {allowed}. Names are written as the data have them."
        + (" A name that has a comma is given alone, or with a --class of its own." if "," in word else ""),
    )


def _two_readings(word: str, other: str, names: Sequence[str]) -> UsageError:
    return UsageError(
        f"--class {word} can be read in two ways: as {other}, or as the class of that name",
        hint=f"Give numbers; that class is {names.index(word)}.",
    )


def label_of_name(name: str, names: Sequence[str] | None, allowed: str) -> int:
    """Return the index of the class called ``name``.

    Args:
        allowed: what else may stand for classes, for the message.

    Raises:
        UsageError: no class is called so.
    """
    if names is None or name not in names:
        near = "" if names is None else f"; {nearest(name, names)}"
        raise UsageError(f"there is no class {shown(name)}; allowed are {allowed}{near}")
    return list(names).index(name)
