"""Options that several commands share, and the parsing of a command's words."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from gebm_kit.cli.completion import (
    complete_checkpoint,
    complete_recipe,
    complete_run_or_override,
    complete_word_of_recipe,
)
from gebm_kit.core.errors import UsageError
from gebm_kit.core.paths import user_path

MOST_THREADS = max(64, 4 * (os.cpu_count() or 1))
"""Most CPU threads that can be asked for; the runtime ends the process when the system has no more of them."""

BETA = "sample.inverse_temperature"
"""Key of the inverse temperature. Commands on a run take its last part alone as well."""

LARGEST_SEED = 2**63 - 1
LARGEST_COUNT = 10**12
"""Most draws that can be asked for: a number that no disk holds is a slip."""


def place(option: str) -> Callable[[str], Path]:
    """Return the parser of an option that names a place; it replaces ``~`` and refuses what no file system takes."""

    def parse(word: str) -> Path:
        return user_path(word, what=option)

    return parse


def known_device(word: str) -> str:
    """Return the value of ``--device``; it is looked for on this machine later, when torch is imported."""
    if not word.strip():
        raise UsageError("--device is empty", hint="Allowed: auto, cpu, cuda, cuda:N.")
    return word


OUTPUT = "Output"
"""Heading of these options in a command's help."""


Json = Annotated[bool, typer.Option("--json", help="Print one JSON object.", rich_help_panel=OUTPUT)]


Quiet = Annotated[
    bool, typer.Option("--quiet", "-q", help="No progress and no notes, only the result.", rich_help_panel=OUTPUT)
]


Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.", rich_help_panel=OUTPUT)]


Device = Annotated[
    str | None,
    typer.Option(
        "--device", metavar="DEVICE", parser=known_device, help="auto, cpu, cuda, cuda:1, ...; default: the recipe's."
    ),
]


Threads = Annotated[
    int | None,
    typer.Option(
        "--threads", min=1, max=MOST_THREADS, metavar="N", help="CPU threads of torch; default: torch's choice."
    ),
]


RunDirectory = Annotated[
    Path | None,
    typer.Option(
        "--out", metavar="DIR", parser=place("--out"), help="The run directory; default: a new one under runs/."
    ),
]


ResumeRun = Annotated[
    bool, typer.Option("--resume", help="Resume the unfinished run there, or start one if there is none.")
]


DryRun = Annotated[bool, typer.Option("--dry-run", help="Check everything, measure a few steps, and write nothing.")]


TrustProgram = Annotated[
    bool,
    typer.Option(
        "--trust-program",
        help="Allow a generator that is a program (TorchScript, torch.export), whose code then runs here.",
    ),
]


TrustPaths = Annotated[
    bool,
    typer.Option(
        "--trust-paths",
        help="Allow a dataset's rows to name files and addresses that are not part of it, which are then opened.",
    ),
]


RecipeWord = Annotated[
    str,
    typer.Argument(
        metavar="RECIPE", help="A recipe file or the name of a shipped recipe.", autocompletion=complete_recipe
    ),
]


RunWord = Annotated[
    str | None,
    typer.Argument(
        metavar="RUN",
        help="A run directory; default: the newest finished run under runs/.",
        autocompletion=complete_run_or_override,
    ),
]


CheckpointWord = Annotated[
    str,
    typer.Option(
        "--checkpoint",
        metavar="last|best|step-N",
        help="Which of the run's checkpoints; for best see train.keep_best.",
        autocompletion=complete_checkpoint,
    ),
]


OverrideWords = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="KEY=VALUE",
        help="Values that replace the recipe's, such as sample.seed=1.",
        autocompletion=complete_word_of_recipe,
    ),
]


RunOverrideWords = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="KEY=VALUE",
        help="Values that replace the recipe's, such as sample.seed=1, or inverse_temperature=0.9 (or =calibrated).",
        autocompletion=complete_word_of_recipe,
    ),
]


@dataclass(frozen=True, slots=True)
class Words:
    """The words after a command: the one without ``=`` (None: not given), and the overrides."""

    target: str | None
    overrides: tuple[str, ...]


def split_words(words: Sequence[str] | None, what: str) -> Words:
    """Split words into overrides, which contain ``=``, and the one word without, the ``what`` (RUN, RECIPE or DATA).

    Raises:
        UsageError: there are two words without ``=``.
    """
    targets = [word for word in words or () if "=" not in word]
    if len(targets) > 1:
        raise UsageError(
            f"expected one {what}, got {len(targets)}: {', '.join(targets)}",
            hint="Write an override as KEY=VALUE, without blanks around '='.",
        )
    return Words(targets[0] if targets else None, tuple(word for word in words or () if "=" in word))


def words_on_run(run_word: str | None, override_words: Sequence[str] | None) -> Words:
    """Split the words after a command that works on a trained run; ``inverse_temperature=...`` is written out.

    Raises:
        UsageError: there are two words without ``=``.
    """
    given = split_words([*filter(None, [run_word]), *(override_words or ())], "RUN")
    return Words(given.target, with_long_beta(given.overrides))


def with_long_beta(overrides: Iterable[str]) -> tuple[str, ...]:
    """Write ``inverse_temperature=...`` out as ``sample.inverse_temperature=...``; leave other overrides as they are."""
    section, _, short = BETA.partition(".")
    return tuple(f"{section}.{word.strip()}" if word.partition("=")[0].strip() == short else word for word in overrides)


def only_sections(overrides: Sequence[str], allowed: Sequence[str], command: str) -> None:
    """Refuse overrides of sections that are fixed once a run is trained.

    Raises:
        UsageError: a key outside the ``allowed`` sections.
    """
    for word in overrides:
        section = word.partition("=")[0].partition(".")[0].strip()
        if section not in allowed:
            hint = "What a run was trained with is fixed; `gebm-kit train RECIPE KEY=VALUE` trains another run."
            raise UsageError(
                f"`{command}` can't override {section!r}; it can override {', '.join(allowed)}",
                hint=_whole_keys(word, allowed) or hint,
            )


def _whole_keys(word: str, allowed: Sequence[str]) -> str:
    """Return a hint with the whole keys that the key of an override may stand for; empty if it is no part of one."""
    from gebm_kit.config.override_keys import override_keys

    key, _, value = word.partition("=")
    found = [
        whole for whole in override_keys()
        if whole.endswith(f".{key.strip()}") and whole.partition(".")[0] in allowed
    ]  # fmt: skip
    return f"Write the whole key: {' or '.join(f'{whole}={value}' for whole in found)}." if found else ""


def set_trust(programs: bool, paths: bool = False) -> None:
    """Allow or forbid generators that are programs, and files that a dataset names, until this command is done."""
    from gebm_kit.core.trust import set_trusted

    set_trusted(programs, paths)
