"""Rows of data that a command is given in a file, and the run that they are held against."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gebm_kit.core.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor

    from gebm_kit.engine.run_directory.run import Run

RunFileWords = Annotated[
    list[str],
    typer.Argument(metavar="[RUN] FILE [KEY=VALUE ...]", help="The run (default: the newest finished one), the rows."),
]

Key = Annotated[str | None, typer.Option("--key", metavar="NAME", help="The array in a .npz or .safetensors FILE.")]


@dataclass(frozen=True, slots=True)
class Given:
    """The words of such a command: a run or None, the file, overrides."""

    run: str | None
    file: Path
    overrides: tuple[str, ...]


def given_rows(words: Sequence[str], command: str) -> Given:
    """Tell run, file and overrides apart.

    Raises:
        UsageError: there is no file, or a word too many.
    """
    overrides = tuple(word for word in words if "=" in word)
    places = [word for word in words if "=" not in word]
    if not 1 <= len(places) <= 2:
        raise UsageError(
            f"a FILE, or a RUN and a FILE, are expected, got {len(places)} words: {', '.join(places) or 'none'}",
            hint=f"For example `gebm-kit {command} runs/redwine/... rows.csv`.",
        )
    return Given(places[0] if len(places) == 2 else None, Path(places[-1]), overrides)


def read_rows(file: Path, key: str | None, run: Run) -> tuple[Tensor, tuple[str, ...]]:
    """Rows of a file and the names of their columns, () for data that are no table. Columns that the run was not trained on
    may hold anything, where they are told apart by name; images of bytes are scaled to [-1, 1], as for training.

    Raises:
        DataError: anything that keeps the file from being read.
    """
    from gebm_kit.core.interfaces import HasStandardisation
    from gebm_kit.data.arrays import image_rows
    from gebm_kit.data.columns import column_names, read_table
    from gebm_kit.data.tables import load
    from gebm_kit.engine.likelihood.user_rows import columns_of

    if len(run.model.data_shape) != 1:
        return image_rows(load(file, key, None).rows, file), ()
    names = column_names(file, key)
    known: object = run.dataset
    wanted = known.columns if isinstance(known, HasStandardisation) else None
    places = range(len(names)) if wanted is None else columns_of(names, wanted, str(file))
    table = read_table(file, key, [names[place] for place in places])
    return table.rows, table.columns
