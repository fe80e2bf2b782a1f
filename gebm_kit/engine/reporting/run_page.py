"""The page about one run: its sections, in the order in which a reader asks."""

from __future__ import annotations

import shlex
from collections.abc import Callable

from gebm_kit.core.version import __version__
from gebm_kit.engine.reporting import trusted
from gebm_kit.engine.reporting.chains import energies_section, quality_section
from gebm_kit.engine.reporting.charts import MEANINGS
from gebm_kit.engine.reporting.facts import RunFacts
from gebm_kit.engine.reporting.making import (
    again_section,
    data_section,
    recipe_section,
    trained_on,
    updated,
    versions_section,
)
from gebm_kit.engine.reporting.material import Material
from gebm_kit.engine.reporting.page import FOOT, Legend, Missing, Page, Section, Text
from gebm_kit.engine.reporting.pictures import (
    by_energy_section,
    classes_section,
    images_section,
    moved_section,
    neighbours_section,
)
from gebm_kit.engine.reporting.scores import answer, by_how_much, verdict_section
from gebm_kit.engine.reporting.tables import clouds_section, table_section
from gebm_kit.engine.reporting.training_curves import curves_section
from gebm_kit.engine.reporting.words import plain

SECTIONS: tuple[tuple[str, str, Callable[..., Section | None]], ...] = (
    ("verdict", "Is the GEBM better than its base?", lambda facts, material: verdict_section(facts)),
    ("trust", "Can the draws be trusted?", lambda facts, material: trusted.trust_section(facts)),
    ("draws", "What the draws look like", images_section),
    ("draws", "What the draws look like", clouds_section),
    ("before-and-after", "The same latent codes before and after", moved_section),
    ("by-energy", "Draws by their energy", by_energy_section),
    ("neighbours", "Are training data copied?", neighbours_section),
    ("classes", "Class by class", classes_section),
    ("columns", "Columns, one by one and in pairs", table_section),
    ("energies", "Energies", energies_section),
    ("training", "How training went", lambda facts, material: curves_section(facts)),
    ("quality", "Quality against evaluations", lambda facts, material: quality_section(facts)),
    ("data", "What was it trained on, and how", data_section),
    ("recipe", "Recipe", lambda facts, material: recipe_section(facts)),
    ("versions", "Versions and device", lambda facts, material: versions_section(facts)),
    ("again", "How to make it again", again_section),
)
"""Anchor, title and maker of each section; a maker returns None where the data are of another kind."""


def run_page(facts: RunFacts, material: Material) -> Page:
    """Return the page about a run."""
    made = [_made(name, title, make, facts, material) for name, title, make in SECTIONS]
    sections = [section for section in made if section is not None]
    answers = [
        ("Is the GEBM better than its base?", _safe(answer, facts)),
        ("By how much?", _safe(by_how_much, facts)),
        ("Can the draws be trusted?", _safe(trusted.answer, facts)),
        ("What should be done?", _safe(trusted.what_to_do, facts)),
        ("What was it trained on?", Text(trained_on(facts, material))),
        ("How do I make it again?", Text(_again(facts))),
    ]
    state = facts.record.state
    return Page(
        title=f"Report of {facts.name}",
        subtitle=f"{plain(facts.path)} · {state} · {updated(facts)}",
        answers=answers,
        sections=sections,
        foot=FOOT.format(version=__version__),
        legend=Legend(list(MEANINGS.items())),
    )


def _again(facts: RunFacts) -> str:
    if facts.own_objects:
        return "By running the Python program that called gk.fit again; see the last section."
    seed = facts.part("train", "seed")
    command = f"gebm-kit train {shlex.quote(str(facts.path / 'resolved.yaml'))} --out AGAIN"
    return (
        f"{plain(command)} (the seed, {plain(str(seed))}, is in it). The last section has all commands and checksums."
    )


def _made(
    name: str, title: str, make: Callable[..., Section | None], facts: RunFacts, material: Material
) -> Section | None:
    """Make a section; one that can't be made says so, and the others are shown."""
    try:
        return make(facts, material)
    except Exception as error:  # files of a run may hold anything
        return Section(
            name, title, "", [Missing(f"This part can't be shown: {plain(f'{type(error).__name__}: {error}')}.")]
        )


def _safe(make: Callable[[RunFacts], Text], facts: RunFacts) -> Text:
    try:
        return make(facts)
    except Exception as error:
        return Text(f"Not known: the evaluation can't be read ({plain(f'{type(error).__name__}: {error}')}).", "unsure")
