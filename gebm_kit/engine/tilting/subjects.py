"""The generator and the scorer of a tilt, from whatever names them: objects, files, runs or nodes of a recipe."""

from __future__ import annotations

import inspect
import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gebm_kit.config.build import build
from gebm_kit.config.schema import ComponentNode
from gebm_kit.core.classes import held_base, held_energy, is_conditional
from gebm_kit.core.components import parameters
from gebm_kit.core.contracts import check_base_facts
from gebm_kit.core.errors import GebmKitError, UsageError, shown
from gebm_kit.core.interfaces import Base, Dataset, Energy, HasFitting, HasSource, OnCodes
from gebm_kit.core.model import GEBM
from gebm_kit.core.paths import user_path
from gebm_kit.core.plugins import installed
from gebm_kit.core.program_files import folder_error, kind_of
from gebm_kit.core.programs import Program, reason
from gebm_kit.core.progress import OnProgress, Progress, ignore
from gebm_kit.core.reading import read_file
from gebm_kit.engine.run_directory.run import Run, load_run
from gebm_kit.engine.run_directory.run_files import is_run

Generator = Base | GEBM | Run | ComponentNode | Mapping[str, Any] | str | Path
Scorer = Energy | Run | ComponentNode | Mapping[str, Any] | str | Path | Callable[[Tensor], Tensor]


class CallableScorer(Energy):
    """A function or module ``r(x)`` as an energy ``-r(x)``; (B, *D) -> (B,)."""

    frozen = True

    def __init__(self, score: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.name = getattr(score, "__name__", type(score).__name__)
        if isinstance(score, nn.Module):
            self.module = score
        self.described = f"the scorer {self.name}"
        self._score = [score]  # in a list, so that a module is registered once

    def forward(self, x: Tensor) -> Tensor:
        rows = len(x)
        try:
            score: Any = self._score[0](x)
        except (GebmKitError, torch.OutOfMemoryError, MemoryError):
            raise
        except Exception as error:  # whatever its author wrote
            what = f"{type(error).__name__}: {reason(error)}"
            raise UsageError(
                f"{self.described} fails on {rows} rows of shape {list(x.shape[1:])}: {what}",
                hint="It must take batches of any size, with and without gradient; x.detach() has none.",
            ) from error
        if isinstance(score, Tensor) and score.is_floating_point() and tuple(score.shape) in ((rows,), (rows, 1)):
            return -score.reshape(rows)
        found = f"shape {list(score.shape)} of {score.dtype}" if isinstance(score, Tensor) else type(score).__name__
        raise UsageError(
            f"the scorer {self.name} returns {found} for {rows} rows; it must return one floating-point number a row, "
            f"[{rows}]"
        )


@dataclass(frozen=True)
class Facts:
    """What is known about the data before anything is built.

    Attributes:
        dataset: the data, or None.
        value_range: (low, high) as given; None: the dataset's.
        data_shape: shape of a data point as given; None: the dataset's, or the generator's.
        directory: start of relative paths.
    """

    dataset: Dataset | None = None
    value_range: tuple[float, float] | None = None
    data_shape: tuple[int, ...] | None = None
    directory: Path = field(default_factory=Path.cwd)

    def injected(self, data_shape: tuple[int, ...] | None) -> dict[str, Any]:
        """Return the values that components may ask for."""
        dataset = self.dataset
        span = self.value_range or (None if dataset is None else dataset.value_range)
        shape = self.data_shape or (None if dataset is None else tuple(dataset.data_shape)) or data_shape
        facts = {"value_range": span, "num_classes": getattr(dataset, "num_classes", None), "directory": self.directory}
        return facts if shape is None else {**facts, "data_shape": tuple(shape)}


@dataclass(frozen=True)
class Subject:
    """A generator and a scorer, built.

    Attributes:
        model: both as a model; ``model.energy`` is minus the score.
        generator, scorer: what they are, for the result.
        dataset, value_range: the data, or None; range of its values, or None.
        own: the generator's own energy, of a run or a model; None: it has none.
    """

    model: GEBM
    generator: Mapping[str, Any]
    scorer: Mapping[str, Any]
    dataset: Dataset | None
    value_range: tuple[float, float] | None
    own: Energy | None = None


def subject_of(
    generator: Generator,
    scorer: Scorer,
    facts: Facts,
    latent_shape: Sequence[int] | None,
    label: int | None,
    with_data: bool,
    on_progress: OnProgress = ignore,
) -> Subject:
    """Build the generator and the scorer.

    Args:
        generator: a base, a model or run whose base is meant, a file, or a node.
        scorer: an energy, a function of data that returns scores, a run whose energy is meant, a file, a component's name,
            or a node.
        facts: what is known about the data.
        latent_shape: shape of one code of a program that does not state it.
        label: class at which conditional parts are held.
        with_data: whether a run's own data are opened, where none are given.
        on_progress: called while an energy learns from data.

    Raises:
        UsageError: one of them is of another kind, or needs data that are not given.
    """
    generator, scorer = opened(generator), opened(scorer)
    source = generator if isinstance(generator, Run) else scorer if isinstance(scorer, Run) else None
    if source is not None and facts.dataset is None:
        dataset = source.dataset if with_data or _needs_data(scorer) else None
        facts = Facts(dataset, facts.value_range or source.value_range, facts.data_shape, facts.directory)
    base = _base(generator, facts, latent_shape)
    trained = generator.model if isinstance(generator, Run) else generator if isinstance(generator, GEBM) else None
    _check_class(base, label)
    whole, base = base, base if label is None else held_base(base, label)
    check_base_facts(base, facts.injected(None).get("data_shape"))
    known = facts.injected(tuple(base.data_shape))
    whole_energy = _energy(scorer, known, base)
    if label is not None and not any(map(is_conditional, (whole, whole_energy))):
        raise UsageError(f"there is no class {label} here: neither the generator nor the scorer has classes")
    _check_class(whole_energy, label)
    energy = whole_energy if label is None else held_energy(whole_energy, label)
    model = GEBM(base, energy)
    if not isinstance(scorer, nn.Module):
        energy.to(model.dtype)
    _fit(whole_energy, scorer, facts.dataset, on_progress)
    own = None if trained is None else trained.energy
    if own is not None and label is not None:
        own = held_energy(own, label)
    described = _described(generator, whole), _described(scorer, whole_energy)
    return Subject(model, *described, facts.dataset, known["value_range"], own)


def _fit(energy: Energy, scorer: Any, dataset: Dataset | None, on_progress: OnProgress) -> None:
    """Let an energy learn from the data what it needs before it can score, unless it has.

    Raises:
        UsageError: there are no data.
    """
    if not isinstance(energy, HasFitting) or bool(energy.fitted):
        return
    if dataset is None:
        raise UsageError(
            f"energy {_name(scorer)!r} learns from data before it can score: name a dataset too",
            hint="For example `gebm-kit tilt generator.pt classifier digits energy.target=7`; in Python data='digits'.",
        )
    energy.fit(dataset, torch.device("cpu"), 0, lambda step, total: on_progress(Progress("fit", step, total)))


def opened(word: Any) -> Any:
    """Open a run's directory; return anything else as it is."""
    if isinstance(word, str | Path) and is_run(user_path(word)):
        return load_run(word)
    return word


def _base(generator: Any, facts: Facts, latent_shape: Sequence[int] | None) -> Base:
    if isinstance(generator, Run):
        return generator.model.base
    if isinstance(generator, GEBM):
        return generator.base
    if isinstance(generator, Base):
        return generator
    if isinstance(generator, str | Path):
        generator = ComponentNode("pretrained", {"path": str(generator)})
    node = _node("base", generator, "generator", "a base, a model, a run, a file or a node {name: ...}")
    if latent_shape is not None and node.parameters.get("latent_shape") is None:
        node = ComponentNode(node.name, {**node.parameters, "latent_shape": list(latent_shape)})
    known = facts.injected(None)
    if "data_shape" not in known and _needs_shape(node):
        known["data_shape"] = _program_shape(node, facts.directory)
    base: Base = build("base", node, known)
    return base


def _check_class(part: Base | Energy, label: int | None) -> None:
    """Raise for a conditional part where no class is given.

    Raises:
        UsageError: it is conditional.
    """
    if is_conditional(part) and label is None:
        known = "; or name it for the scorer alone: energy.target=3" if getattr(part, "target", 0) is None else ""
        raise UsageError(
            f"{type(part).__name__} is conditional, and a tilt serves one law at a time",
            hint=f"Give the class: --class 3, in Python label=3{known}.",
        )


def _needs_shape(node: ComponentNode) -> bool:
    """Return whether a base must be told the shape of the data; one that knows it has a default."""
    shape = parameters(installed().registry.get("base", node.name).load()).get("data_shape")
    return shape is not None and shape.default is inspect.Parameter.empty


def _program_shape(node: ComponentNode, directory: Path) -> tuple[int, ...]:
    """Return the shape of the data that a generator's program makes.

    Raises:
        UsageError: the generator is not a program, or does not state the shape of its codes.
    """
    path, given = node.parameters.get("path"), node.parameters.get("output_shape")
    if node.name == "pretrained" and path is not None:
        place = directory / user_path(path)
        if place.is_dir():
            raise folder_error(place, str(path))
        kind = kind_of(place, content := read_file(place, error=UsageError))
        if kind != "weights":
            program = Program(kind, place, content, "")
            latent = node.parameters.get("latent_shape") or program.input_shape
            if latent is None:
                raise UsageError(
                    f"{path} does not state the shape of its input: give the shape of one latent code",
                    hint="--latent 100, or --latent 100x1x1; in Python latent_shape=[100].",
                )
            codes = torch.randn(2, *latent, generator=torch.Generator().manual_seed(0)).to(program.dtype)
            try:
                with torch.no_grad():
                    made = program(codes)
            except Exception as error:  # whatever its author wrote
                raise UsageError(
                    f"{path} fails on codes of shape {list(latent)}: {reason(error)}",
                    hint="Give the shape of its input: --latent 100, or --latent 100x1x1; in Python latent_shape=[100].",
                ) from error
            if isinstance(made, Tensor) and made.ndim > 1 and given is None:
                shape = tuple(made.shape[1:])
                last = node.parameters.get("channels_last") and len(shape) == 3
                return (shape[2], shape[0], shape[1]) if last else shape
            if given is not None:
                return tuple(given)
    raise UsageError(
        "the shape of the generator's data is not known: name a dataset too",
        hint="For example `gebm-kit tilt GENERATOR SCORER digits`; in Python data='digits' or data_shape=(1, 28, 28).",
    )


def _energy(scorer: Any, known: dict[str, Any], base: Base) -> Energy:
    if isinstance(scorer, Run):
        energy: Energy = scorer.model.energy
    elif isinstance(scorer, Energy):
        energy = scorer
    elif callable(scorer) and not isinstance(scorer, Mapping):
        energy = CallableScorer(scorer)
    else:
        if isinstance(scorer, str | Path):
            scorer = scorer_node(str(scorer))
        node = _node("energy", scorer, "scorer", "an energy, a function of data, a run, a file, or a node {name: ...}")
        energy = build("energy", node, {**known, "latent_dim": base.latent_dim})
    if isinstance(energy, OnCodes):
        raise UsageError(f"a scorer is a function of data, but {type(energy).__name__} is an energy on codes")
    return energy


def scorer_node(word: str) -> ComponentNode:
    """Return the energy that a word means: ``pretrained`` for a file, else the energy of that name."""
    place = user_path(word)
    is_file = os.path.lexists(place) or place.suffix or os.sep in word
    return ComponentNode("pretrained", {"path": word}) if is_file else ComponentNode(word)


def _node(kind: str, value: Any, what: str, allowed: str) -> ComponentNode:
    """Return the node that ``value`` is or describes, with the nodes inside it.

    Raises:
        UsageError: it describes none.
    """
    if isinstance(value, ComponentNode):
        return value
    if not isinstance(value, Mapping) or not isinstance(value.get("name"), str):
        raise UsageError(f"the {what} must be {allowed}, got {shown(value)}")
    name, chosen = str(value["name"]), {k: v for k, v in value.items() if k != "name"}
    for parameter in parameters(installed().registry.get(kind, name).load()).values():
        inside = chosen.get(parameter.name)
        if parameter.kind is None or inside is None:
            continue
        several = inside if isinstance(inside, list | tuple) else [inside]
        nodes = [_inside(parameter.kind, item) for item in several]
        chosen[parameter.name] = nodes if isinstance(inside, list | tuple) else nodes[0]
    return ComponentNode(name, chosen)


def _inside(kind: str, value: Any) -> Any:
    """Return the node that a name or a mapping inside a node describes; an object is returned as it is."""
    if isinstance(value, str):
        return ComponentNode(value)
    return _node(kind, value, kind, "a name or a node {name: ...}") if isinstance(value, Mapping) else value


def _needs_data(scorer: Any) -> bool:
    """Return whether the scorer may need the data themselves: a component by name does."""
    return isinstance(scorer, str | Path | Mapping | ComponentNode) and _name(scorer) != "pretrained"


def _name(scorer: Any) -> str:
    if isinstance(scorer, str | Path):
        return scorer_node(str(scorer)).name
    if isinstance(scorer, ComponentNode):
        return scorer.name
    if isinstance(scorer, Mapping):
        return str(scorer.get("name"))
    return getattr(scorer, "name", None) or type(scorer).__name__


def _described(given: Any, part: Base | Energy) -> dict[str, Any]:
    """Describe a part: its file with the sha256, its run, or its class and parameters."""
    if isinstance(given, Run):
        return {"run": str(given.path), "step": given.step}
    if isinstance(part, HasSource):
        return {"path": str(part.source_file), "sha256": part.source_sha256}
    found: dict[str, Any] = {"name": getattr(part, "name", None) or type(part).__name__}
    if isinstance(given, ComponentNode):
        found = {"name": given.name, **_plain(given.parameters)}
    elif isinstance(given, Mapping):
        found = {"name": given.get("name"), **_plain({k: v for k, v in given.items() if k != "name"})}
    return found


def _plain(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Return parameters as JSON holds them; what it can't hold is written as text."""
    found: dict[str, Any] = json.loads(json.dumps(dict(parameters), default=_as_plain))
    return {k: v for k, v in found.items() if not (isinstance(v, float) and not math.isfinite(v))}


def _as_plain(value: Any) -> Any:
    return value.as_dict() if isinstance(value, ComponentNode) else str(value)


def label(described: Mapping[str, Any]) -> str:
    """Return a short name of a generator or scorer for messages and pictures."""
    if "path" in described:
        return Path(described["path"]).name
    return Path(described["run"]).name if "run" in described else str(described.get("name"))
