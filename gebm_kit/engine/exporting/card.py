"""The model card of an exported folder: a README.md with YAML front matter, as the Hugging Face hub reads it.

Everything that comes from the run passes through `gebm_kit.engine.exporting.escape`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from gebm_kit.core.progress_lines import duration
from gebm_kit.engine.exporting.escape import code, fenced, interval, md, number, plain_text
from gebm_kit.engine.exporting.pictures import FIGURES

DATA_LICENCES = {
    "digits": "CC BY 4.0 (E. Alpaydin, C. Kaynak: Optical Recognition of Handwritten Digits, UCI, "
    "https://doi.org/10.24432/C50P49)",
    "redwine": "CC BY 4.0 (P. Cortez and others: Wine Quality, UCI, https://doi.org/10.24432/C56S3T)",
}
"""Licences of the data that come with the kit. Toy data are made by a formula."""

TOYS = ("eight-gaussians", "twenty-five-gaussians", "two-moons", "checkerboard", "rings", "pinwheel", "curve")

TASKS = {1: ("tabular", "Table"), 3: ("unconditional-image-generation", "Image generation")}
"""Task of the model index, and its name, by the number of axes of a data point."""


@dataclass(frozen=True)
class CardFacts:
    """What a card says.

    Attributes:
        config: content of ``config.json``.
        recipe: the resolved recipe, as plain data.
        evaluation: the run's evaluation, or None.
        program: content of ``program.json``; None without a program.
        no_program: why there is no program, "" if nobody asked for one.
        pictures: names of the pictures.
        licence: licence of the model as its author states it; None: not stated.
    """

    config: Mapping[str, Any]
    recipe: Mapping[str, Any]
    evaluation: Mapping[str, Any] | None
    program: Mapping[str, Any] | None
    no_program: str
    pictures: Sequence[str]
    licence: str | None


def model_card(facts: CardFacts) -> str:
    """Return the card."""
    name = md(facts.config["name"])
    parts = [
        f"---\n{_front_matter(facts)}---",
        f"# {name}",
        _what(facts),
        _pictures(facts),
        "## How good it is",
        _quality(facts),
        "## How to draw",
        _drawing(facts),
        "## Intended use and limits",
        _limits(facts),
        "## Training",
        _training(facts),
        "## Licence",
        _licence(facts),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _front_matter(facts: CardFacts) -> str:
    shape = facts.config["model"]["data_shape"]
    tags = ["gebm", "energy-based-model", "mcmc", "generative"]
    if len(shape) == 3:
        tags.append(
            "unconditional-image-generation" if facts.config["facts"].get("num_classes") is None else "image-generation"
        )
    head: dict[str, Any] = {"library_name": "gebm-kit", "tags": tags}
    if facts.licence is not None:
        head["license"] = plain_text(facts.licence)
    results = _results(facts, len(shape))
    if results:
        head["model-index"] = [{"name": plain_text(facts.config["name"]), "results": results}]
    return yaml.safe_dump(head, sort_keys=False, allow_unicode=True)


def _results(facts: CardFacts, axes: int) -> list[dict[str, Any]]:
    columns = (facts.evaluation or {}).get("metrics") or {}
    metrics = [
        {"type": plain_text(key), "name": plain_text(f"{key} of {label}"), "value": cell["value"]}
        for column, label in (("gebm", "the GEBM"), ("base", "the base alone"))
        for key, cell in (columns.get(column) or {}).items()
        if isinstance(cell, Mapping) and isinstance(cell.get("value"), int | float)
    ]
    if not metrics:
        return []
    kind, title = TASKS.get(axes, ("other", "Generation"))
    data = plain_text(facts.recipe["data"].get("name", "unknown"))
    return [{"task": {"type": kind, "name": title}, "dataset": {"type": data, "name": data}, "metrics": metrics}]


def _what(facts: CardFacts) -> str:
    config, recipe = facts.config, facts.recipe
    model = config["model"]
    shape = " x ".join(str(n) for n in model["data_shape"])
    text = (
        "A Generalized Energy-Based Model of gebm-kit: a base "
        f"{code(recipe['base'].get('name'))} that generates, and an energy {code(model['energy'])} that re-weights what it "
        f"generates. Draws are made by MCMC in the base's latent space of {model['latent_dim']} numbers. A data point is "
        f"{shape}; the model has {number(model['parameters'])} parameters."
    )
    columns = (config["facts"].get("units") or {}).get("columns")
    if columns:
        text += "\n\nColumns: " + ", ".join(code(column) for column in columns) + "."
    classes, count = config["facts"].get("class_names"), config["facts"].get("num_classes")
    if model["conditional"]:
        named = "" if not classes else ": " + ", ".join(code(name) for name in classes)
        text += f"\n\nThe model draws from any of {count} classes{named}."
    return text


def _pictures(facts: CardFacts) -> str:
    return "\n\n".join(f"![{FIGURES[name]}]({name})\n\n*{FIGURES[name]}.*" for name in facts.pictures)


def _quality(facts: CardFacts) -> str:
    evaluation = facts.evaluation
    if not evaluation:
        return "The run has no evaluation. Measure the model before you rely on it: `gebm-kit eval`."
    lines = [f"- {md(text)}" for text in (evaluation.get("verdict") or {}).values()]
    columns = evaluation.get("metrics") or {}
    names = list(dict.fromkeys(key for column in columns.values() if column for key in column))
    table = ["| metric | held-out data | base | GEBM | GEBM / base |", "|---|---|---|---|---|"]
    for key in names:
        cells = [interval((columns.get(column) or {}).get(key)) for column in ("data", "base", "gebm", "ratio")]
        table.append(f"| {code(key)} | {' | '.join(cells)} |")
    parts = ["\n".join(lines), "\n".join(table) if names else "", _protocol(evaluation)]
    partition = evaluation.get("log_partition")
    if isinstance(partition, Mapping) and partition.get("value") is not None:
        how = md(partition.get("method", "an unknown method"))
        parts.append(f"log Z = {number(partition['value'])} ± {number(partition.get('se'))} nats, by {how}.")
    return "\n\n".join(part for part in parts if part)


def _protocol(evaluation: Mapping[str, Any]) -> str:
    lines = []
    for name, entry in (evaluation.get("protocol") or {}).items():
        facts = ", ".join(
            f"{md(key)} {md(value)}"
            for key, value in entry.items()
            if isinstance(value, str | int | float | bool) and value is not None
        )
        lines.append(f"- {code(name)}: {facts}")
    beta = evaluation.get("inverse_temperature")
    if beta is not None:
        lines.append(f"- inverse temperature of the draws: {number(beta)}")
    return "" if not lines else "Numbers in brackets are 95 % intervals. Protocol:\n\n" + "\n".join(lines)


def _drawing(facts: CardFacts) -> str:
    config = facts.config
    with_kit = (
        "import gebm_kit as gk\n\n"
        'run = gk.load("PLACE")  # this folder, or hub://OWNER/NAME\n'
        f"draws = gk.sample(run, num_samples=64, seed=0{', labels=[0]' if config['model']['conditional'] else ''})\n"
        "draws.x"
    )
    if config["facts"].get("units"):
        with_kit += "  # standardised; draws.to_frame() has the columns in measured units"
    text = "With gebm-kit:\n\n" + fenced("python", with_kit)
    objects = config.get("objects") or {}
    if objects:
        named = ", ".join(f"{code(key)} ({code(cls)})" for key, cls in objects.items())
        text += (
            f"\n\nThe run was trained on Python objects that the folder does not hold: {named}. `gk.load` needs them: "
            '`gk.load("PLACE", base=..., energy=...)`.'
        )
    plugins = sorted({c["distribution"] for c in config["components"] if c["distribution"] != "gebm-kit"})
    if plugins:
        text += "\n\nIt needs these plugins of gebm-kit: " + ", ".join(code(name) for name in plugins) + "."
    return f"{text}\n\n{_program(facts)}"


def _program(facts: CardFacts) -> str:
    program = facts.program
    if program is None:
        return f"There is no program that runs without gebm-kit: {md(facts.no_program)}" if facts.no_program else ""
    noise = program["inputs"][0]["shape"][1]
    rows = "64" if program["batch"] is None else str(program["batch"])
    labels = ", torch.zeros(" + rows + ", dtype=torch.int64)" if len(program["inputs"]) > 1 else ""
    call = (
        "import torch\n\n"
        'program = torch.export.load("program.pt2").module()  # loading runs code: only from a source that you trust\n'
        f"x = program(torch.randn({rows}, {noise}){labels})"
    )
    sampler = facts.config["sampler"]
    reached, settled = sampler["energy"], sampler["settled_energy"]
    parts = [
        "Without gebm-kit, by torch alone:",
        fenced("python", call),
        f"Every row of noise, standard normal, becomes one draw by {program['steps']} steps of {code(sampler['name'])} from "
        f"the prior at inverse temperature {number(sampler['inverse_temperature'])}. "
        f"{'Accepting and rejecting are part of the program. ' if sampler['exact'] else ''}"
        f"Its mean energy is {number(reached['value'])} ± {number(reached['se'])}; that of chains which had run longer is "
        f"{number(settled['value'])} ± {number(settled['se'])}. If the two differ, the steps are too few.",
    ]
    if sampler["stands_in_for"]:
        parts.append(
            f"The run's own sampler is {code(sampler['stands_in_for'])}, which is not one kernel; {code(sampler['name'])} "
            "stands in for it in the program."
        )
    units = facts.config["facts"].get("units")
    if units:
        parts.append(
            "The program returns standardised rows: `x * std + mean` with the numbers under `units` in `program.json`."
        )
    return "\n\n".join(parts)


def _limits(facts: CardFacts) -> str:
    lines = [
        "- Made for research on generative models, and for drawing data like those that it was trained on.",
        "- It repeats what its data hold, biases included, and can reproduce single training rows. It says nothing about "
        "data of another kind.",
        "- Draws of MCMC depend on how long chains run. Read the diagnostics that come with the draws.",
    ]
    if facts.config["facts"].get("log_ratio") is False:
        lines.append(
            "- Its loss does not make the energy a log density ratio: the draws do not estimate the data's law."
        )
    return "\n".join(lines)


def _training(facts: CardFacts) -> str:
    config = facts.config
    seconds = config.get("training_seconds")
    lines = [
        f"- data: {code(facts.recipe['data'].get('name'))}, loss: {code(facts.recipe['loss'].get('name'))}, "
        f"{number(config['step'])} steps, seed {number(facts.recipe['train'].get('seed'))}",
        f"- time: {'not recorded' if seconds is None else duration(seconds)}",
        f"- versions: gebm-kit {md(config['versions'].get('gebm-kit'))}, torch {md(config['versions'].get('torch'))}",
        "- train it again: `gebm-kit train recipe.yaml`",
    ]
    if config["paths"]:
        named = ", ".join(code(key) for key in config["paths"])
        lines.append(
            f"- paths of the machine that trained it are shortened to their last name in {code('recipe.yaml')}: {named}"
        )
    return "\n".join(lines)


def _licence(facts: CardFacts) -> str:
    model = (
        f"The author states {code(facts.licence)} as the licence of the model."
        if facts.licence
        else "The author has not stated a licence of the model."
    )
    name = str(facts.recipe["data"].get("name"))
    known = "made by a formula, so they have none" if name in TOYS else DATA_LICENCES.get(name)
    data = f"The data are {known}." if name in TOYS else f"The data: {known}." if known else None
    return f"{model} {data or 'gebm-kit does not know the licence of the data.'}"
