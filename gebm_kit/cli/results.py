"""Tables of results that several commands print."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gebm_kit.cli import ui
from gebm_kit.core.class_names import titled

if TYPE_CHECKING:
    from gebm_kit.engine.sampling.diagnostics import Diagnostics

COLUMN_LABELS = {"data": "held-out data", "base": "base", "gebm": "GEBM", "ratio": "GEBM / base"}
"""Keys of an evaluation's ``metrics``, in the order of the table's columns, and what heads them."""

REPORT = "report.html"
"""Name of the report in a run directory."""

SENTENCES = ("sampler_reason", "unsettled")
"""Diagnostics that are sentences, which are printed below the table or as warnings."""

DIAGNOSTIC_HEADINGS = ("diagnostic", "value", "good", "verdict")
EVALUATION_HEADINGS = ("metric", *COLUMN_LABELS.values())


EQUILIBRIUM = "equilibrium"
"""Key of the verdict's sentence about equilibrium; the others are names of values."""

INDENT = "  "
"""What later lines of a long sentence begin with."""

SIGNIFICANT = 2.0
"""Number of standard errors, and SMALL the distance, from 1 at which a calibration is called off."""

SMALL = 0.05
"""Distance of beta from 1 that changes no draw that anyone would see."""


def show_evaluation(evaluation: Mapping[str, Any]) -> None:
    """Print the JSON of ``eval``: scores and what they mean, the equilibrium test, then what it all rests on."""
    verdict: Mapping[str, str] = evaluation.get("verdict") or {}
    show_scores(evaluation, {name: text for name, text in verdict.items() if name != EQUILIBRIUM})
    if equilibrium := evaluation.get("equilibrium"):
        show_equilibrium(equilibrium, verdict.get(EQUILIBRIUM, ""))
        ui.text()
    show_reason((evaluation.get("diagnostics") or {}).get("sampler_reason"))
    train, test = (ui.number(evaluation.get(key)) for key in ("kale_train", "kale_test"))
    ui.text(f"KALE: {train} on training data, {test} on held-out data")
    partition = evaluation.get("log_partition") or {}
    if partition.get("value") is not None:
        show_log_partition(partition)
    if nll := evaluation.get("nll"):
        show_nll(nll)
    if calibration := evaluation.get("calibration"):
        show_calibration(calibration, evaluation.get("inverse_temperature", 1.0))
    if classes := evaluation.get("classes"):
        show_classes(classes)
    if classifier := evaluation.get("classifier"):
        show_classifier(classifier)
    budget = evaluation.get("budget") or {}
    if budget.get("cut"):
        ui.sentence(f"cut to fit a budget of {budget.get('seconds') or 0:.0f} s: {'; '.join(budget['cut'])}", INDENT)


def show_classes(classes: Mapping[str, Any]) -> None:
    """Print the scores of a model with classes, class by class."""
    names = list(dict.fromkeys(name for found in classes.values() for name in found["metrics"].get("gebm") or {}))
    ui.text()
    scores = [f"{name}, {column}" for name in names for column in ("base", "GEBM")]
    rows = []
    for label, found in classes.items():
        cells = [
            interval((found["metrics"].get(column) or {}).get(name)) for name in names for column in ("base", "gebm")
        ]
        ends = [ui.number(found["kale_test"]), ui.number(found.get("accuracy"))]
        title = f"{label} ({found['name']})" if found.get("name") else label
        rows.append([title, str(found["rows"]), str(found["draws"]), *cells, *ends])
    ui.table("", ("class", "rows", "draws", *scores, "KALE", "accuracy"), rows)


def show_classifier(found: Mapping[str, Any]) -> None:
    """Print how well the model tells the classes of held-out rows, and how its class probabilities are calibrated."""
    rows = f"{found['rows']} held-out rows"
    if found.get("reason"):
        text = f"class of the lowest E(x, y) + A_y on {rows}: right in {interval(found['accuracy'])}"
        ui.sentence(f"{text} (majority {ui.number(found['majority'])}); {found['reason']}", INDENT)
        return
    ui.sentence(
        f"class probabilities by Bayes' rule on {rows}: accuracy {interval(found['accuracy'])} (majority "
        f"{ui.number(found['majority'])}), NLL {interval(found['nll'])} nats, Brier {interval(found['brier'])}, "
        f"calibration error {ui.number(found['calibration_error'])} in {len(found['bins'])} bins of confidence",
        INDENT,
    )


def show_class_rows(classes: Mapping[str, Any]) -> None:
    """Print how many rows each class is the most probable of, and each log-partition; or why that is not known."""
    counts: Mapping[str, Any] = classes.get("rows") or {}
    if classes.get("reason"):
        ui.sentence(str(classes["reason"]), INDENT)
    names = classes.get("names")
    rows = [
        [
            titled(int(label), names),
            ui.number(weight),
            *([str(counts[label])] if counts else []),
            _with_error(partition),
        ]
        for (label, partition), weight in zip(classes["log_partition"].items(), classes["weights"], strict=True)
    ]
    ui.table("", ("class", "weight", *(["most probable in"] if counts else []), "log partition"), rows)


def show_scores(evaluation: Mapping[str, Any], verdict: Mapping[str, str]) -> None:
    """Print the metrics as a table: values with 95 % intervals, what they depend on, and what they say of the GEBM."""
    metrics: Mapping[str, Mapping[str, Any]] = evaluation.get("metrics") or {}
    names = list(dict.fromkeys(name for column in COLUMN_LABELS for name in metrics.get(column) or {}))
    if not names:
        return
    rows = [[name, *(interval((metrics.get(column) or {}).get(name)) for column in COLUMN_LABELS)] for name in names]
    ui.table("", EVALUATION_HEADINGS, rows)
    beta = evaluation.get("inverse_temperature", 1.0)
    at = "" if beta == 1.0 else f"; GEBM draws at inverse_temperature {beta:g}"
    ui.text(f"[95 % intervals over independent draw sets]{at}")
    show_protocols(evaluation.get("protocol") or {})
    ratios = metrics.get("ratio") or {}
    for line in verdict_lines({name: text for name, text in verdict.items() if name in names}, ratios):
        ui.sentence(line, INDENT)


def verdict_lines(verdict: Mapping[str, str], ratios: Mapping[str, Any]) -> list[str]:
    """Shorten the sentences about metrics: those that differ in the metric alone become one, without the table's ratios."""
    found: dict[str, list[str]] = {}
    for name, text in verdict.items():
        start, by, _ = text.partition(f" by {name}: ")
        if by and name in ratios and ratios[name].get("low") is not None:
            found.setdefault(f"{start} by", []).append(name)
        else:
            found[text] = []
    return [f"{start} {', '.join(names)}." if names else start for start, names in found.items()]


def show_protocols(protocols: Mapping[str, Mapping[str, Any]]) -> None:
    """Print what the values of metrics depend on, with one line for all metrics that share a protocol."""
    found: dict[str, list[str]] = {}
    for name, protocol in protocols.items():
        if text := protocol_words(protocol):
            found.setdefault(text, []).append(name)
    for text, names in found.items():
        ui.sentence(f"{', '.join(names)}: {text}", INDENT)


def protocol_words(protocol: Mapping[str, Any]) -> str:
    """Describe what a metric's values depend on.

    That is the numbers of draws and reference rows, the features with their checksum, and how images are resized. The
    number of held-out rows in a set is added where it differs from the number of draws.
    """
    words = []
    if protocol.get("samples") is not None:
        against = [protocol, protocol["train"]] if "train" in protocol else [protocol]
        counts = [f"{p['reference']} {p.get('reference_part', 'reference')} rows" for p in against if "reference" in p]
        counts += [f"{protocol['train_rows']} train rows"] if "train_rows" in protocol else []
        words.append(f"{protocol['samples']} draws" + (f" against {' and '.join(counts)}" if counts else ""))
    if protocol.get("features") is not None:
        checksum = str(protocol.get("features_checksum", ""))
        words.append(f"features {protocol['features']} ({checksum[:8]}), resize {protocol.get('resize', 'none')}")
    if protocol.get("held_out", protocol.get("samples")) != protocol.get("samples"):
        words.append(f"held-out data by {protocol['held_out']} rows in place of draws")
    return ", ".join(words)


def show_log_partition(partition: Mapping[str, Any]) -> None:
    """Print the log-partition A with its interval, the method, the reason for that method, and the cross-check."""
    reason = str(partition.get("reason") or "")
    doubt = "" if partition.get("reliable", True) or "not reliable" in reason else "not reliable: "
    why = f"; {reason}" if reason else ""
    ui.sentence(f"log partition: {doubt}{_with_error(partition)} ({partition.get('method', '')}{why})", INDENT)
    if partition.get("gap") is not None:
        bridge = partition.get("bridge")
        found = (
            "too far apart to bridge"
            if bridge is None
            else _with_error({"value": bridge, "se": partition["bridge_se"]})
        )
        ends = f"{ui.number(partition['forward'])} from base draws, {ui.number(partition['reverse'])} from model draws"
        ui.sentence(f"  bridge sampling: {found}; {ends} (gap {ui.number(partition['gap'])})", INDENT * 2)


def show_nll(nll: Mapping[str, Any]) -> None:
    """Print the negative log-likelihoods of held-out data under GEBM and base."""
    ui.text(f"NLL of {nll['num_rows']} held-out rows, nats ({nll['space']}): {_with_error(nll['gebm'])}")
    ui.text(f"  of the base: {_with_error(nll['base'])}; GEBM - base: {_with_error(nll['difference'])}")


def show_calibration(calibration: Mapping[str, Any], used: float = 1.0) -> None:
    """Print the inverse temperature that fits the validation part best, and what it says about the energy.

    Args:
        used: inverse temperature of the draws.
    """
    beta, stderr = (calibration.get(name) for name in ("inverse_temperature", "stderr"))
    if beta is None:
        ui.sentence(f"calibration: no inverse temperature fits best, as {calibration_words(calibration)}", INDENT)
        return
    found = ui.number(beta) + ("" if stderr is None else f" +- {stderr:.2g}")
    gain = f"KALE {ui.number(calibration.get('kale'))} there, {ui.number(calibration.get('kale_at_1'))} at 1"
    apply = "; inverse_temperature=calibrated draws there" if used != beta and _is_off(beta, stderr) else ""
    text = f"validation data fit best at inverse temperature {found} ({gain}); {calibration_words(calibration)}{apply}"
    ui.sentence(f"calibration: {text}", INDENT)


def _is_off(beta: float, stderr: float | None) -> bool:
    """Return whether a calibrated beta is clearly not 1."""
    return stderr is not None and abs(beta - 1.0) >= max(SIGNIFICANT * stderr, SMALL)


def calibration_words(calibration: Mapping[str, Any]) -> str:
    """Say in words whether the energy is calibrated, from the JSON of a `Calibration`."""
    beta, stderr = calibration.get("inverse_temperature"), calibration.get("stderr")
    if calibration.get("reason"):
        return str(calibration["reason"])
    if beta is None or stderr is None:
        return "not known"
    if not _is_off(beta, stderr):
        return "the energy fits held-out data as it is"
    if beta < 1:
        return "the energy is overconfident: draws at beta 1 are sharper than held-out data bear out"
    return "the energy is timid: held-out data bear out a sharper model than beta 1"


ENERGY_LABELS = {"energy_data": "held-out data", "energy_model": "GEBM", "energy_base": "base"}
"""Keys of an equilibrium's energies, in the order of the table's rows, and what they are called."""

GOOD_LAW = "draws of a good model have the energies of held-out data, and stay good as chains run on"
"""What the equilibrium test looks for."""

ENERGY_HEADINGS = ("energy E", "mean +- se", "5 %", "25 %", "50 %", "75 %", "95 %")
LENGTH_KEYS = {"metric_at_1x": "1x", "metric_at_2x": "2x", "metric_at_4x": "4x"}


def show_equilibrium(found: Mapping[str, Any], verdict: str = "") -> None:
    """Print the energies of data, GEBM and base side by side, the metric along the chains, and what both mean."""
    rows = []
    for key, label in ENERGY_LABELS.items():
        cell = found.get(key) or {}
        quantiles = [(cell.get(f"q{q}") or {}).get("value") for q in ("05", "25", "50", "75", "95")]
        se = cell.get("se")
        mean = ui.number(cell.get("value")) + ("" if se is None else f" +- {se:.2g}")
        rows.append([label, mean, *("-" if value is None else f"{value:.3g}" for value in quantiles)])
    ui.text()
    ui.sentence(f"equilibrium: {GOOD_LAW}", INDENT)
    ui.table("", ENERGY_HEADINGS, rows)
    if found.get("metric_at_2x"):
        at = ", ".join(f"{interval(found.get(key))} at {label}" for key, label in LENGTH_KEYS.items() if found.get(key))
        ui.sentence(f"{found.get('metric')} along the chains: {at} {found.get('unit', '')}".rstrip(), INDENT)
    if verdict:
        ui.sentence(verdict, INDENT)


def _with_error(cell: Mapping[str, Any]) -> str:
    return f"{interval(cell)} +- {ui.number(cell.get('se'))}"


def show_diagnostics(diagnostics: Diagnostics) -> None:
    """Print all numbers as a table, each with its limit and verdict where it has one, then the overall verdict."""
    checks = {check.name: check for check in diagnostics.checks()}
    rows = []
    for name, value in (diagnostics.as_dict() | diagnostics.details).items():
        if isinstance(value, list | dict | bool) or name in SENTENCES:
            continue  # the overall verdict, nested details and sentences do not fit into a cell
        check = checks.get(name)
        verdict = "" if check is None else "ok" if check.ok else "BAD"
        rows.append([name, ui.number(value), "" if check is None else check.good, verdict])
    ui.table("", DIAGNOSTIC_HEADINGS, rows)
    count = len(diagnostics.problems)
    said = f"no; {count} problem{'s' if count > 1 else ''}, see the warnings" if count else "yes"
    ui.text(f"converged: {said}")
    show_reason(diagnostics.sampler_reason)


def show_reason(reason: str | None) -> None:
    """Print why `auto` drew with its sampler; nothing when the sampler was named."""
    if reason:
        ui.sentence(f"sampler: {reason}", INDENT)


def interval(cell: Mapping[str, Any] | None) -> str:
    """Write a value with its 95 % interval, if it has one; a dash for no value."""
    if not cell or cell.get("value") is None:
        return "-"
    low, high = cell.get("low"), cell.get("high")
    around = "" if low is None or high is None else f" [{ui.number(low)}, {ui.number(high)}]"
    return f"{ui.number(cell['value'])}{around}"


def figure_paths(directory: Path) -> list[str]:
    """Return the paths of the pictures in a run's figures directory, sorted by name."""
    return [str(path) for path in sorted(directory.glob("*.png"))]


def show_report(directory: Path) -> None:
    """Print one line for a run's report, if it has one."""
    if (directory / REPORT).is_file():
        ui.text(f"report: {directory / REPORT}")


def show_figures(paths: list[str]) -> None:
    """Print one line for each picture."""
    for path in paths:
        ui.text(f"figure: {path}")
