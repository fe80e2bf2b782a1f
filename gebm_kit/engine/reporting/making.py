"""What a run was made of and how to make it again: data, recipe, versions, commands and checksums."""

from __future__ import annotations

import datetime
import shlex
from typing import Any

from gebm_kit.engine.reporting.facts import RunFacts
from gebm_kit.engine.reporting.material import Material
from gebm_kit.engine.reporting.page import Block, Code, Facts, Missing, Section, Table, Text
from gebm_kit.engine.reporting.words import number, plain, real, seconds


def data_section(facts: RunFacts, material: Material) -> Section:
    """Return what the run was trained on, and what it is made of."""
    pairs = [("data", facts.component("data")), *material.about_data]
    parts = [(name, facts.component(name)) for name in ("base", "energy", "loss", "sampler")]
    parts += [(f"{name} of the final phase", facts.component("train", "final", name)) for name in ("energy", "loss")]
    blocks: list[Block] = [Facts([(name, value) for name, value in [*pairs, *parts] if value])]
    if material.missing.get("data"):
        blocks.append(
            Missing(
                f"The data can't be read now: {material.missing['data']}. The report shows what does not need them."
            )
        )
    steps = facts.record.step
    total = f" of {facts.record.total_steps:,}" if facts.record.total_steps else ""
    pairs = [
        ("state", facts.record.state),
        ("steps", f"{steps:,}{total}" if steps is not None else ""),
        ("training time", seconds(_training_seconds(facts))),
        ("checkpoint", facts.checkpoint),
        ("damage", plain(facts.record.problem, 1000)),
    ]
    blocks.append(Facts([(name, value) for name, value in pairs if value]))
    return Section("data", "What was it trained on, and how", "", blocks)


def recipe_section(facts: RunFacts) -> Section:
    """Return the recipe as it was read, and the words that changed it."""
    blocks: list[Block] = []
    if facts.recipe_text:
        blocks.append(Code("The recipe as it was read", facts.recipe_text))
    else:
        blocks.append(Missing("The run directory holds no recipe.yaml."))
    if facts.overrides:
        blocks.append(Code("Words that changed it (KEY=VALUE)", "\n".join(facts.overrides)))
    else:
        blocks.append(Text("Nothing was overridden."))
    return Section("recipe", "Recipe", "", blocks)


def versions_section(facts: RunFacts) -> Section:
    """Return versions, platform and device."""
    environment = facts.environment
    if not environment:
        return Section("versions", "Versions and device", "", [Missing("The run directory's env.json can't be read.")])
    cuda = environment.get("cuda")
    pairs: list[tuple[str, Any]] = [
        (name, environment.get(name)) for name in ("gebm-kit", "python", "torch", "platform")
    ]
    plugins = environment.get("plugins")
    if isinstance(plugins, dict):
        pairs.append(("plugins", ", ".join(f"{name} {version}" for name, version in plugins.items()) or "none"))
    pairs += [
        ("device of the recipe", facts.part("device")),
        ("CUDA", cuda or "none"),
        ("threads", environment.get("threads")),
    ]
    pairs += [("precision", facts.part("precision")), ("relative paths start from", environment.get("directory"))]
    found = [
        (name, plain(number(value) if isinstance(value, int) else value))
        for name, value in pairs
        if value not in (None, "")
    ]
    return Section("versions", "Versions and device", "", [Facts(found)])


def again_section(facts: RunFacts, material: Material) -> Section:
    """Return the commands that make the run again, its seeds and its checksums."""
    blocks: list[Block] = []
    if facts.own_objects:
        text = (
            "The run was trained by gk.fit on objects of Python, which no command can make again. Run that program again, "
            "with the same seed and the same data; gk.load_run(path, base=..., energy=..., data=...) opens this run."
        )
        blocks.append(Missing(text))
    else:
        blocks.append(Code("Train it again, evaluate it, and draw from it", "\n".join(commands(facts))))
    seeds = [("seed of training", facts.part("train", "seed")), ("seed of the evaluation", facts.part("eval", "seed"))]
    seeds += [("seed of draws", facts.part("sample", "seed")), ("seed of the data's parts", facts.part("data", "seed"))]
    blocks.append(Facts([(name, plain(str(value))) for name, value in seeds if value is not None]))
    rows = [[name, digest] for name, digest in facts.sums.items()]
    if material.fingerprint:
        rows.append(["training data", material.fingerprint])
    if facts.evaluation:
        for metric, protocol in (facts.evaluation.get("protocol") or {}).items():
            if isinstance(protocol, dict) and protocol.get("features_checksum"):
                rows.append([f"features of {plain(metric, 60)}", plain(protocol["features_checksum"], 100)])
    if rows:
        note = (
            "On the same machine and with the same number of threads, training again gives the same checkpoint, bit for bit "
            "on a CPU."
        )
        blocks.append(Table("Checksums (sha256)", ["of", "checksum"], rows, note))
    return Section("again", "How to make it again", "", blocks)


def commands(facts: RunFacts) -> list[str]:
    """Return the commands that make the run again, for a shell."""
    lines = []
    directory = facts.environment.get("directory")
    if isinstance(directory, str) and directory:
        lines.append(f"cd {shlex.quote(directory)}  # relative paths of the recipe start here")
    again = shlex.quote(f"{facts.path.name}-again")
    lines.append(f"gebm-kit train {shlex.quote(str(facts.path / 'resolved.yaml'))} --out {again}")
    lines += [f"gebm-kit eval {again}", f"gebm-kit sample {again} --num-samples 1000 --out draws.safetensors"]
    lines.append(f"gebm-kit report {again}")
    return [line.replace("\n", " ") for line in lines]


def trained_on(facts: RunFacts, material: Material) -> str:
    """Say in one sentence what the run was trained on."""
    rows = dict(material.about_data).get("rows", "")
    shape = dict(material.about_data).get("shape of a row", "")
    about = f": {rows} rows of shape {shape}" if rows else ""
    base, energy = (plain(facts.component(name).split(" (")[0], 80) for name in ("base", "energy"))
    last = plain(facts.component("train", "final", "energy").split(" (")[0], 80)
    final = f", in the final phase {last}, which draws use" if last and facts.part("train", "final", "steps") else ""
    model = f"The base is {base or 'unknown'}, the energy {energy or 'unknown'}{final}."
    return f"Data {facts.component('data') or 'unknown'}{about}. {model}"


def updated(facts: RunFacts) -> str:
    """Write when the run last changed."""
    when = datetime.datetime.fromtimestamp(facts.record.updated, tz=datetime.UTC)
    return when.strftime("%Y-%m-%d %H:%M UTC")


def _training_seconds(facts: RunFacts) -> float | None:
    from gebm_kit.core.errors import GebmKitError
    from gebm_kit.engine.run_directory.run_files import read_status

    try:
        found = read_status(facts.path).get("training_seconds", facts.record.seconds)
    except GebmKitError:
        found = facts.record.seconds
    return real(found)
