"""Commands on rows of a file, `score` and `density`: their words, their rows and their output files."""

from __future__ import annotations

import enum
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Protocol, TypeVar

import typer

from gebm_kit.cli.completion import complete_class
from gebm_kit.cli.options import with_long_beta
from gebm_kit.core.class_names import labels_of_word
from gebm_kit.core.errors import UsageError
from gebm_kit.core.paths import user_path

if TYPE_CHECKING:
    from gebm_kit.cli.ui import Ui
    from gebm_kit.config.schema import Recipe
    from gebm_kit.core.model import GEBM
    from gebm_kit.engine.run_directory.run import Run

RunFileWords = Annotated[
    list[str],
    typer.Argument(
        metavar="[RUN] FILE [KEY=VALUE ...]",
        help="The run (default: the newest finished one), then the file of rows; inverse_temperature=0.9 is an override.",
    ),
]

ClassOfRows = Annotated[
    list[str] | None,
    typer.Option(
        "--class",
        metavar="LABEL",
        help="The class of all rows, by index or name, for a model with classes. Default: not known; every class is scored.",
        autocompletion=complete_class,
    ),
]

EVERY_CLASS = "Without --class rows are scored under every class."
"""Hint for a word of --class that is not one class."""

Key = Annotated[str | None, typer.Option("--key", metavar="NAME", help="The array in a .npz or .safetensors FILE.")]


class BadRowsWord(enum.StrEnum):
    """What to do with rows that can't be used."""

    STOP = "stop"
    SKIP = "skip"


BadRowsOption = Annotated[
    BadRowsWord,
    typer.Option(
        "--bad-rows",
        help="Rows that hold anything but finite numbers: end with an error that names one, or leave them out and name "
        "them. The others keep their numbers.",
    ),
]


@dataclass(frozen=True, slots=True)
class Given:
    """The words after `score` or `density`: the run (None: not given), the file and the overrides."""

    run: str | None
    file: Path
    overrides: tuple[str, ...]


def given_rows(words: Sequence[str], command: str) -> Given:
    """Sort the words into run, file and overrides.

    Raises:
        UsageError: no file is given, or there are too many words.
    """
    overrides = with_long_beta(word for word in words if "=" in word)
    places = [word for word in words if "=" not in word]
    if not 1 <= len(places) <= 2:
        raise UsageError(
            f"expected a FILE, or a RUN and a FILE, got {len(places)} words: {', '.join(places) or 'none'}",
            hint=f"For example `gebm-kit {command} runs/redwine/... rows.csv`.",
        )
    return Given(places[0] if len(places) == 2 else None, user_path(places[-1], what="FILE"), overrides)


def class_of_words(words: Sequence[str] | None, model: GEBM, hint: str) -> int | None:
    """Read the word of --class where it is one class, by its index or its name; None without a word.

    Raises:
        UsageError: it is something else, or the model has no such class.
    """
    from gebm_kit.engine.likelihood.class_densities import labels_of_rows

    if not words:
        return None
    word = words[0]
    if len(words) > 1:
        given = ", ".join(map(repr, words))
        raise UsageError(f"--class is given {len(words)} times ({given}); allowed: one class, such as 7", hint=hint)
    if model.conditional:
        found = labels_of_word(word, model.class_names)
        if isinstance(found, str) or len(found) != 1:
            raise UsageError(f"--class is {word!r}; allowed: one class, such as 7", hint=hint)
        labels_of_rows(model, found[0], 1)
        return found[0]
    labels_of_rows(model, word, 1)  # it raises: there are no classes
    return None


def class_key(label: int | None) -> dict[str, int]:
    """Return the key of the JSON that says which class was given; none without a class."""
    return {} if label is None else {"class": label}


class RowValues(Protocol):
    """Values of N rows that a command writes to a file, such as `RowScores` and `LogDensities`."""

    def as_dict(self) -> dict[str, Any]:
        """Return what holds for all rows, as plain JSON."""

    def save(self, path: Path) -> None:
        """Write one line for each row."""


V = TypeVar("V", bound=RowValues)


def compute_rows(
    compute: Callable[..., V],
    given: Given,
    key: str | None,
    run: Run,
    dataset: Any,
    recipe: Recipe,
    device: str | None,
    say: Ui,
    label: int | None = None,
    bad_rows: BadRowsWord = BadRowsWord.STOP,
) -> V:
    """Read the rows of the file and call ``compute`` on them, with the run's model and data and the recipe's settings.

    Args:
        compute: `row_scores` or `densities`.
        dataset: what says how the run's data were prepared, see `known_data`.
        key: the array in the file, or None.
        device: in place of the recipe's.
        label: the class of all rows; None: not known.
        bad_rows: what to do with rows that can't be used.

    Raises:
        DataError: the file can't be read, or its rows do not fit the run.
    """
    from gebm_kit.engine.likelihood.class_densities import labels_of_rows
    from gebm_kit.engine.likelihood.row_sources import rows_of_file
    from gebm_kit.engine.likelihood.usable_rows import usable_rows
    from gebm_kit.engine.sampling.settings import settings_of

    given_rows = rows_of_file(given.file, key, run.model.data_shape, dataset, bad_rows.value)
    names = given_rows.names
    rows, numbers = usable_rows(
        given_rows.rows, bad_rows.value, names=names, source=str(given.file), known=given_rows.bad
    )
    with say.progress() as on_progress:
        return compute(
            run.model,
            dataset,
            rows,
            inverse_temperature=settings_of(recipe.sample).inverse_temperature,
            space=recipe.nll.space,
            method=recipe.eval.log_partition,
            seed=recipe.eval.seed,
            device=device or recipe.device,
            names=names,
            source=str(given.file),
            block_size=recipe.sample.block_size,
            labels=labels_of_rows(run.model, label, len(rows)),
            numbers=numbers,
            on_progress=on_progress,
        )


def save_rows(found: RowValues, given: Given, run: Run, out: Path | None, folder: str) -> dict[str, str]:
    """Write the values to ``out``, or to ``folder`` in the run directory under the file's name.

    Returns:
        What the JSON says of places: ``run``, ``checkpoint``, ``file``, ``out``.
    """
    from gebm_kit.core.files import make_directory

    place = out or run.outputs / folder / f"{given.file.stem}.csv"
    make_directory(place.parent)
    found.save(place)
    return {
        "run": str(run.path),
        "checkpoint": str(run.checkpoint.path),
        "file": str(given.file),
        "out": str(place),
    }
