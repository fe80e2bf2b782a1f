"""Can the draws be trusted: every diagnostic with its limit, what it means in plain words, and what to do when it is off."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from gebm_kit.core.estimators import PARETO_K_LIMIT
from gebm_kit.engine.evaluation.verdict import EQUILIBRIUM
from gebm_kit.engine.reporting.facts import RunFacts
from gebm_kit.engine.reporting.page import Block, Bullets, Section, Table, Text, Tone
from gebm_kit.engine.reporting.scores import not_evaluated
from gebm_kit.engine.reporting.words import DASH, listed, number, plain, real
from gebm_kit.engine.sampling.diagnostics import Diagnostics

SLOW_MIXING = "raise sample.warmup and sample.steps, or choose a sampler that moves further"
FEW = "raise sample.steps or sample.num_chains"
MOVING = "use a sampler that moves, such as hmc or smc"

MEANINGS = {
    "rhat_max": ("R-hat", "whether the chains agree; far above 1, each has seen another part", SLOW_MIXING),
    "nested_rhat_max": ("nested R-hat", "whether many short chains have forgotten where they started", SLOW_MIXING),
    "stuck_chains": ("chains that never moved", "their draws are where they started", SLOW_MIXING),
    "ess_min": ("effective sample size", "independent draws that these are worth, where it is least", FEW),
    "ess_tail_min": ("effective sample size in the tails", "the same for the 5 % and 95 % quantiles", FEW),
    "pareto_k": ("Pareto k of the weights", "above the limit, few prior draws carry most of the weight", MOVING),
    "divergences": (
        "divergent steps",
        "steps at which the energy was not finite, or that were far too long",
        "lower the sampler's step_size, unless the energy is meant to be infinite there",
    ),
    "equipartition": (
        "equipartition",
        "1 when chains have arrived; off, they have not, or their steps are too long",
        "raise sample.warmup, or lower the sampler's step_size",
    ),
    "exhausted": ("draws without a passed test", "they lie too near to the base", MOVING),
    "violations": (
        "energies below the bound",
        "places of very low energy are drawn too rarely",
        "raise the sampler's margin or pool_size",
    ),
    "unsettled": (
        "tests of auto",
        "no attempt of the automatic sampler passed its tests",
        "name a sampler, such as sampler=hmc, and raise sample.steps",
    ),
}
"""By the diagnostic: what it is called, what it means, and what to do when it is off."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One diagnostic in words: its name, value, what is wanted, tone, meaning, and what to do about it."""

    name: str
    value: str
    wanted: str
    tone: Tone
    meaning: str
    advice: str
    of_chains: bool = True


def trust_section(facts: RunFacts) -> Section:
    """Return every diagnostic of the last evaluation, with what to do about those that are off."""
    title = "Can the draws be trusted?"
    if not facts.evaluation:
        return Section("trust", title, "", [not_evaluated(facts)])
    lead = (
        "Draws come from chains that must have forgotten their start, and the model itself must agree with held-out data. "
        "These checks look at both. Each says what it means, and what to do when it is off."
    )
    found = findings(facts)
    off = [one for one in found if one.tone in ("bad", "unsure")]
    items = [
        Text(f"{one.name} is {one.value} ({one.wanted} is wanted): {one.meaning}. What to do: {one.advice}.", one.tone)
        for one in off
    ]
    problems = (facts.evaluation.get("diagnostics") or {}).get("problems") or []
    blocks: list[Block] = [answer(facts)]
    if items:
        blocks.append(Bullets(items))
    rows = [
        [one.name, one.value, one.wanted, Text("", one.tone) if one.tone != "plain" else DASH, one.meaning, one.advice]
        for one in found
    ]
    headers = ["check", "value", "wanted", "verdict", "what it means", "if it is off"]
    blocks.append(Table("Checks of the draws and of the model", headers, rows))
    for text in [plain(problem, 1000) for problem in problems if isinstance(problem, str)]:
        blocks.append(Text(f"The sampler says: {text}"))
    if reason := (facts.evaluation.get("diagnostics") or {}).get("sampler_reason"):
        blocks.append(Text(f"Why this sampler: {plain(reason, 1500)}"))
    return Section("trust", title, lead, blocks)


def answer(facts: RunFacts) -> Text:
    """Answer in one sentence whether the draws can be trusted."""
    if not facts.evaluation:
        return Text("This run has no evaluation.", "unsure", "Not known")
    found = findings(facts)
    chains = [one for one in found if one.of_chains]
    if not chains:
        return Text("The evaluation kept no diagnostics of its chains.", "unsure", "Not known")
    off = listed([one.name for one in chains if one.tone != "good"])
    if any(one.tone == "bad" for one in chains):
        return Text(f"Outside the limit: {off}. The checks say what to do.", "bad", "Not as they are")
    first = "The chains have converged" if not off else f"The chains have converged, but look at {off}"
    model = [f"{one.name} ({one.value})" for one in found if not one.of_chains and one.tone != "good"]
    if not model:
        tone: Tone = "unsure" if off else "good"
        return Text(f"{first}, and the model agrees with held-out data.", tone, "Mostly" if off else "Yes")
    return Text(
        f"{first}, so these are draws of this model. Where the model itself is off held-out data: {'; '.join(model)}.",
        "unsure",
        "Yes, as draws of the model",
    )


def what_to_do(facts: RunFacts) -> Text:
    """Say what to do about the check that is off the most; without an evaluation, how to get one."""
    if not facts.evaluation:
        missing = not_evaluated(facts)
        return Text(f"Evaluate it first: {missing.command}" if missing.command else missing.text)
    off = [one for one in findings(facts) if one.tone in ("bad", "unsure")]
    if not off:
        return Text("Nothing: every check holds.")
    worst = next((one for one in off if one.tone == "bad"), off[0])
    return Text(f"About the {worst.name}: {worst.advice}.")


def findings(facts: RunFacts) -> list[Finding]:
    """Return all checks: of the chains, of the log-partition, and of the equilibrium test."""
    evaluation = facts.evaluation
    found = _of_chains(evaluation.get("diagnostics") or {})
    partition, calibration = (evaluation.get(name) or {} for name in ("log_partition", "calibration"))
    used = evaluation.get("inverse_temperature")
    return [*found, *_of_log_partition(partition), *_of_equilibrium(evaluation), *_of_calibration(calibration, used)]


def diagnostics_in(values: Mapping[str, Any]) -> Diagnostics | None:
    """Read diagnostics back from an evaluation's JSON; None where they can't be."""
    fields = {field.name: field for field in dataclasses.fields(Diagnostics)}
    given = {name: value for name, value in values.items() if name in fields}
    for name, field in fields.items():
        if given.get(name) is None and name not in ("sampler_reason", "unsettled", "details", "family"):
            given[name] = math.nan if field.type == "float" else 0 if field.type == "int" else ""
    details = given.get("details")
    given["details"] = details if isinstance(details, dict) else {}
    given["family"] = given.get("family") or "kernel"
    try:
        return Diagnostics(**given)
    except TypeError:
        return None


def _of_chains(values: Mapping[str, Any]) -> list[Finding]:
    diagnostics = diagnostics_in(values)
    if diagnostics is None or not values:
        return []
    found = []
    try:
        checks = diagnostics.checks()
    except (TypeError, ValueError, KeyError):
        checks = []
    for check in checks:
        name, meaning, advice = MEANINGS.get(check.name, (check.name, "", ""))
        value = getattr(diagnostics, check.name, None)
        value = diagnostics.details.get(check.name) if value is None else value
        shown = "not passed" if check.name == "unsettled" else number(value)
        if isinstance(value, float) and math.isinf(value):
            shown = "infinite"
        found.append(Finding(name, shown, plain(check.good), "good" if check.ok else "bad", meaning, advice))
    if not math.isnan(diagnostics.acceptance):
        low = diagnostics.acceptance < 0.1 and diagnostics.family == "kernel"
        found.append(
            Finding(
                "acceptance", number(diagnostics.acceptance, 3), "above 0.1", "unsure" if low else "good",
                "share of the proposed moves that were taken; near 0 the chains hardly move",
                "lower the sampler's step_size, or let sampler=auto choose",
            )
        )  # fmt: skip
    return found


def _of_log_partition(partition: Mapping[str, Any]) -> list[Finding]:
    if partition.get("value") is None or partition.get("reliable") is None:
        return []
    sampled = partition.get("method") in (
        None,
        "importance-sampling",
    )  # weights of base draws; others do not rest on them
    k = partition.get("pareto_k") if sampled else None
    value = f"{number(partition['value'])} +- {number(partition.get('se'), 2)}"
    return [
        Finding(
            "log-partition A", value + ("" if k is None else f", Pareto k {number(k, 2)}"),
            f"Pareto k below {PARETO_K_LIMIT}" if k is not None else "reliable",
            "good" if partition["reliable"] is True else "unsure",
            "normalises the model; densities and likelihoods rest on it, the draws themselves do not",
            "eval.log_partition=smc estimates it through a ladder of temperatures",
            of_chains=False,
        )
    ]  # fmt: skip


def _of_equilibrium(evaluation: Mapping[str, Any]) -> list[Finding]:
    equilibrium = evaluation.get("equilibrium")
    if not isinstance(equilibrium, Mapping) or not equilibrium:
        return []
    agrees, worsens = equilibrium.get("agrees"), equilibrium.get("worsens")
    gap = (equilibrium.get("gap") or {}).get("value")
    found = []
    if gap is not None:
        found.append(
            Finding(
                "difference of energies between draws and held-out data",
                f"{100 * gap:.0f} % of that between base and data", "at most 10 %",
                "good" if agrees is True else "bad" if agrees is False else "unsure",
                "draws of a good model have the energies of held-out data",
                "sample at inverse_temperature=calibrated, or train the energy longer (train.final.steps)",
                of_chains=False,
            )
        )  # fmt: skip
    ratio, difference = equilibrium.get("ratio") or {}, equilibrium.get("difference") or {}
    change = f"{number(ratio.get('value'), 3)} times as large"
    if ratio.get("low") is None and difference.get("low") is not None:  # values around 0 have no ratio
        change = f"changed by {number(difference.get('value'), 2)}"
    if ratio.get("value") is not None:
        longest, unit = equilibrium.get("longest"), plain(equilibrium.get("unit") or "the chain length", 80)
        found.append(
            Finding(
                f"{plain(equilibrium.get('metric') or 'metric', 60)} as chains run on",
                f"{change} at {number(longest)}x {unit}", "no worse, beyond its error",
                "bad" if worsens is True else "good" if worsens is False else "unsure",
                "a model whose draws get worse the longer chains run has no good law of its own",
                "train the energy longer or regularise it more (train.penalty), and look at the section on quality",
                of_chains=False,
            )
        )  # fmt: skip
    return found


def _of_calibration(calibration: Mapping[str, Any], used: Any) -> list[Finding]:
    beta, stderr = calibration.get("inverse_temperature"), calibration.get("stderr")
    beta, used = real(beta), real(used)
    if beta is None or used is None:
        return []
    error = real(stderr) or 0.0
    near = abs(beta - used) <= max(2 * error, 0.05)
    return [
        Finding(
            "inverse temperature of the draws",
            f"{number(used)}; held-out data fit best at {number(beta)} +- {number(error, 2)}",
            "the one that fits held-out data best", "good" if near else "unsure",
            "how strongly the energy re-weights the base: 0 is the base alone, 1 the model as trained",
            "inverse_temperature=calibrated evaluates and samples at the best one",
            of_chains=False,
        )
    ]  # fmt: skip


def equilibrium_sentence(facts: RunFacts) -> str:
    """Return the evaluation's own sentence about equilibrium; "" without one."""
    return plain((facts.evaluation.get("verdict") or {}).get(EQUILIBRIUM, ""), 1500)
