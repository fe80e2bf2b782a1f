"""Which component a fault belongs to: its name, package, file and line.

An unknown exception that passes through a frame of a plugin's code is the plugin's. So is one that a method of a component's
base class raises for it. Components passed as Python objects count as well. Nothing here imports torch.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.metadata
import inspect
import signal
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import CodeType, FrameType, TracebackType
from typing import Any

from gebm_kit.core.components import BUILTIN
from gebm_kit.core.errors import GebmKitError, Interrupted, PluginError
from gebm_kit.core.plugins import installed

_KINDS = {
    "Base": "base",
    "Energy": "energy",
    "Loss": "loss",
    "Penalty": "penalty",
    "Sampler": "sampler",
    "Dataset": "dataset",
    "Split": "dataset",
    "FeatureMap": "features",
    "Metric": "metric",
    "Logger": "logger",
}
"""Kind of component by the name of its class in gebm_kit.core.interfaces."""

OWN_FAULT = "The error is raised inside this module of yours, not in gebm-kit."
"""Hint for an exception of a caller's own module."""

_LONGEST = 300
"""Characters of an exception's own words in a message, at most."""

_LOOKED_INTO = 2
"""Frames, from the one that raised outwards, whose local variables are searched for a plugin's component."""

_DEPTH = 3
"""Levels of the kit's objects that are opened in search of a component: a job, its trainer, the trainer's parts."""

_PARTS = 32
"""Entries of a list that is searched for a component, at most."""


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a component comes from.

    Attributes:
        kind: kind of component; "" if unknown.
        name: its registered name, else the name of its class.
        package: distribution and version, or the module if no distribution has it.
        place: file and line of its class; the file alone, or "", if they can't be found.
    """

    kind: str
    name: str
    package: str
    place: str

    def __str__(self) -> str:
        return f"the {self.kind or 'component'} {self.name!r} ({', '.join(filter(None, (self.package, self.place)))})"


def kind_of(component: object) -> str:
    """Return the kind of a component or of its class; "" for anything else."""
    interfaces = sys.modules.get("gebm_kit.core.interfaces")
    cls = component if isinstance(component, type) else type(component)
    for name, kind in _KINDS.items() if interfaces is not None else ():
        if issubclass(cls, getattr(interfaces, name)):
            return kind
    return ""


def origin(component: object, kind: str = "") -> Origin:
    """Return where a component, or its class, comes from.

    Args:
        component: the component or its class.
        kind: its kind, for a component that does not derive from the class of its kind.
    """
    if (module := _of_caller(component)) is not None:
        kind, component = kind_of(component), module
    cls = component if isinstance(component, type) else type(component)
    target = f"{cls.__module__}:{cls.__qualname__}"
    kind = kind or kind_of(cls)
    registry = installed().registry
    for record in registry:
        if record.component.target == target and kind in ("", record.component.kind):
            package = f"{record.distribution} {record.version}".strip()
            return Origin(record.component.kind, registry.short_name(record), package, place_of(cls))
    return Origin(kind, cls.__name__, package_of(cls.__module__), place_of(cls))


def describe(component: object, kind: str = "") -> str:
    """Return the words that name a component in a message: kind, name, package, file and line of its class."""
    return str(origin(component, kind))


def place_of(cls: type) -> str:
    """Return the file and line of a class, as ``file.py, line 7``; "" if neither is known."""
    try:
        file = inspect.getsourcefile(cls) or inspect.getfile(cls)
        return f"{file}, line {inspect.getsourcelines(cls)[1]}"
    except (OSError, TypeError, SyntaxError):  # a class typed in, or without its source: where its first method begins
        codes = [code for value in vars(cls).values() if isinstance(code := getattr(value, "__code__", None), CodeType)]
        first = min(codes, key=lambda code: code.co_firstlineno, default=None)
        return "" if first is None else f"{first.co_filename}, line {first.co_firstlineno}"


@contextlib.contextmanager
def attributed() -> Iterator[None]:
    """Turn an unknown exception inside the block into the `PluginError` of the component whose fault it is.

    Raises:
        PluginError: see `plugin_error`.
    """
    try:
        yield
    except BaseException as error:
        blamed = plugin_error(error)
        if blamed is None:
            raise
        raise blamed from error


def is_interruption(error: BaseException) -> bool:
    """Return whether an exception ends a command from outside, by Ctrl-C or a signal, and is nobody's fault.

    While the kit handles SIGINT itself, a KeyboardInterrupt can only have been raised by some code.
    """
    if isinstance(error, KeyboardInterrupt):
        return signal.getsignal(signal.SIGINT) is signal.default_int_handler
    return isinstance(error, Interrupted) or (not isinstance(error, Exception) and _is_own(type(error).__module__))


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an exception says that memory has run out, the host's or a device's, whoever asked for it.

    Three errors count as one: `torch.OutOfMemoryError`, `MemoryError`, and the RuntimeError of torch's CPU allocator.
    """
    torch = sys.modules.get("torch")
    if isinstance(error, MemoryError) or (torch is not None and isinstance(error, torch.OutOfMemoryError)):
        return True
    return type(error) is RuntimeError and "can't allocate memory" in str(error)


def plugin_error(error: BaseException) -> PluginError | None:
    """Return the error to report in place of an unknown one that is a component's fault; None if it is not.

    The exception is a component's fault if it passes through the component's code, or if the kit raised it while it worked
    with what the component returned.
    """
    if isinstance(error, GebmKitError) or is_out_of_memory(error) or is_interruption(error):
        return None
    frames = [(frame, line) for frame, line in _frames(error.__traceback__)]
    words = " ".join(f"{type(error).__name__}: {error}".split())
    words = words if len(words) <= _LONGEST else words[: _LONGEST - 4] + " ..."
    for index in reversed(range(len(frames))):
        frame, line = frames[index]
        if not _is_foreign(frame):
            continue
        what = _responsible([outer for outer, _ in frames[: index + 1]], frame)
        if _of_caller(_component(frame)) is not None:
            return PluginError(f"{what} failed at {_own_place(frames[index:])}: {words}", hint=OWN_FAULT)
        place = f"{frame.f_code.co_filename}, line {line}"
        return PluginError(f"{what} failed at {place}: {words}", hint=_hint(what))
    for frame, line in reversed(frames[-_LOOKED_INTO:]):
        for value in _locals(frame).values():
            if is_foreign(value):
                what = origin(value)
                place = f"{frame.f_code.co_filename}, line {line}"
                return PluginError(f"{what} gave gebm-kit what it can't use at {place}: {words}", hint=_hint(what))
    held = _held_by(frames)
    if held is None:
        return None
    place = f"{frames[-1][0].f_code.co_filename}, line {frames[-1][1]}"
    what = origin(held)
    hint = f"Everything else is the kit's own, so look at what {what.package} gives first; --debug shows the traceback."
    return PluginError(f"{what} was in use when gebm-kit failed at {place}: {words}", hint=hint)


def _own_place(frames: list[tuple[FrameType, int]]) -> str:
    """Return the innermost place that is neither the kit's nor torch's, or else the innermost one."""
    own = [
        pair
        for pair in frames
        if str(pair[0].f_globals.get("__name__", "")).partition(".")[0] not in ("gebm_kit", "torch")
    ]
    frame, line = (own or frames)[-1]
    return f"{frame.f_code.co_filename}, line {line}"


def culprit(error: BaseException) -> str:
    """Return the words that name the foreign component whose code an exception passes through; "" if there is none."""
    frames = [frame for frame, _ in _frames(error.__traceback__)]
    for index in reversed(range(len(frames))):
        if _is_foreign(frames[index]):
            return str(_responsible(frames[: index + 1], frames[index]))
    return ""


def raised_by(error: GebmKitError) -> str:
    """Return a sentence that names the foreign component whose own code raised an error of the kit; "" for others."""
    frames = [frame for frame, _ in _frames(error.__traceback__)]
    return f"Raised by {_responsible(frames, frames[-1])}." if frames and _is_foreign(frames[-1]) else ""


def _held_by(frames: list[tuple[FrameType, int]]) -> object | None:
    """Return the foreign component that the frames' variables hold, the innermost first; also inside the kit's objects."""
    seen: set[int] = set()
    for frame, _ in reversed(frames):
        values = list(_locals(frame).values())
        for _ in range(_DEPTH):
            found = next((v for v in values if not isinstance(v, type) and is_foreign(v)), None)
            if found is not None:
                return found
            values = [inner for value in values for inner in _parts(value, seen)]
    return None


def _parts(value: object, seen: set[int]) -> list[object]:
    """Return what an object of the kit, or a short list, holds; each object is opened once."""
    if id(value) in seen:
        return []
    seen.add(id(value))
    if isinstance(value, list | tuple) and len(value) <= _PARTS:
        return list(value)
    if isinstance(value, type) or not _is_own(type(value).__module__):
        return []
    held = dict(getattr(value, "__dict__", {}))
    return [*held.values(), *(held.get("_modules") or {}).values()]


def passes_through_component(error: BaseException) -> bool:
    """Return whether an exception was raised inside a component that is not the kit's own, or inside a plugin's code."""
    return any(_is_foreign(frame) for frame, _ in _frames(error.__traceback__))


def is_foreign(component: object) -> bool:
    """Return whether an object, or a class, is a component that is not the kit's own.

    A part held at one class (`gebm_kit.core.classes`) stands for the whole component.
    """
    component = getattr(component, "whole", component)
    cls = component if isinstance(component, type) else type(component)
    return bool(kind_of(cls)) and (not _is_own(cls.__module__) or _of_caller(component) is not None)


def _of_caller(component: object) -> object | None:
    """Return the caller's own module that a component of the kit holds (`gebm_kit.core.own_modules`), or None."""
    return None if isinstance(component, type) else getattr(component, "of_caller", None)


def _hint(what: Origin | str) -> str:
    owner = what.package if isinstance(what, Origin) else what
    return f"This is a fault of {owner}, not of gebm-kit; --debug shows the traceback."


def _frames(trace: TracebackType | None) -> Iterator[tuple[FrameType, int]]:
    while trace is not None:
        yield trace.tb_frame, trace.tb_lineno
        trace = trace.tb_next


def _is_own(module: str) -> bool:
    return module == "gebm_kit" or module.startswith("gebm_kit.")


def _is_foreign(frame: FrameType) -> bool:
    """Return whether a frame runs a plugin's code, or a method of a component that is not the kit's own."""
    module = str(frame.f_globals.get("__name__", ""))
    if not _is_own(module) and module.partition(".")[0] in _plugin_packages():
        return True
    return _component(frame) is not None


def _component(frame: FrameType) -> object | None:
    """Return the foreign component whose method a frame runs, or its class, or None."""
    variables = _locals(frame)
    for name in ("self", "cls"):
        value = variables.get(name)
        if value is not None and (name == "self" or isinstance(value, type)) and is_foreign(value):
            return value
    return None


def _locals(frame: FrameType) -> dict[str, Any]:
    try:
        return dict(frame.f_locals)
    except Exception:  # a frame whose variables can't be read has none to name
        return {}


def _responsible(outwards: list[FrameType], frame: FrameType) -> Origin | str:
    """Name the component that a foreign frame belongs to: the nearest one outwards, else the only one of its module."""
    for outer in reversed(outwards):
        component = _component(outer)
        if component is not None:
            return origin(component)
    module = str(frame.f_globals.get("__name__", ""))
    records = [r for r in installed().registry if r.component.target.partition(":")[0] == module]
    if len(records) == 1:
        found = sys.modules.get(module)
        cls = getattr(found, records[0].component.target.partition(":")[2], None)
        if isinstance(cls, type):
            return origin(cls, records[0].component.kind)
    return f"the plugin {package_of(module)}"


def _plugin_packages() -> frozenset[str]:
    """Return the top-level modules that plugins' components are in."""
    plugins = (r for r in installed().registry if r.distribution != BUILTIN)
    return frozenset(r.component.target.partition(":")[0].partition(".")[0] for r in plugins)


def package_of(module: str) -> str:
    """Return the distribution and version that provide a module, or the module's own name."""
    top = module.partition(".")[0]
    for record in installed().registry:
        if record.component.target.partition(":")[0].partition(".")[0] == top:
            return f"{record.distribution} {record.version}".strip()
    try:
        names = _distributions().get(top, [])
        return f"{names[0]} {importlib.metadata.version(names[0])}" if names else f"module {module}"
    except Exception:  # damaged metadata of any installed package
        return f"module {module}"


@functools.cache
def _distributions() -> Mapping[str, list[str]]:
    """Return the distributions by top-level package; reading them all takes a good part of a second."""
    return importlib.metadata.packages_distributions()
