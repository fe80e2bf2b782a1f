"""Plugin discovery: entry points are filtered and loaded; those that fail are rolled back and reported.

Environment:
    GEBM_KIT_LOAD_PLUGINS    comma-separated distributions or entry points to load; empty: none; unset: all.
    GEBM_KIT_BLOCK_PLUGINS   the same, never to load.
    GEBM_KIT_STRICT_PLUGINS  "1": a plugin that fails is an error.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.metadata
import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import pluggy

from gebm_kit.core import builtins, hookspecs
from gebm_kit.core.components import BUILTIN, Component, Registry, canonical
from gebm_kit.core.errors import PluginError
from gebm_kit.core.version import __version__


@dataclass(frozen=True, slots=True)
class PluginStatus:
    """The result of loading one entry point.

    Attributes:
        name, distribution, version: the entry point and the package that declares it.
        target: the entry point's value, ``module`` or ``module:attribute``.
        path: file that the plugin was imported from ("" when it was not).
        state: ``ok``, ``failed`` or ``blocked``.
        error: why, when it is not ok.
        components: ``kind:name`` of what it provides.
        notes: things worth knowing that are not failures, such as a short name that a built-in keeps.
    """

    name: str
    distribution: str
    version: str
    target: str
    path: str = ""
    state: Literal["ok", "failed", "blocked"] = "ok"
    error: str = ""
    components: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class LoadReport:
    """What happened to every plugin that was found."""

    plugins: tuple[PluginStatus, ...]

    def __iter__(self) -> Iterator[PluginStatus]:
        return iter(self.plugins)

    @property
    def failed(self) -> tuple[PluginStatus, ...]:
        return tuple(p for p in self.plugins if p.state == "failed")


@dataclass(frozen=True, slots=True)
class Discovery:
    """Result of `discover`: the registry and the report on how it was filled."""

    registry: Registry
    report: LoadReport


def discover(
    environ: Mapping[str, str] | None = None, entry_points: Iterable[importlib.metadata.EntryPoint] | None = None
) -> Discovery:
    """Register the built-ins, then every installed plugin that the environment allows.

    Raises:
        PluginError: a plugin failed and ``GEBM_KIT_STRICT_PLUGINS=1``.
    """
    environ = os.environ if environ is None else environ
    unreadable: list[PluginStatus] = []
    if entry_points is None:
        entry_points, unreadable = _entry_points()
    manager = pluggy.PluginManager(hookspecs.PROJECT)
    manager.add_hookspecs(hookspecs)
    registry = Registry()
    manager.register(builtins, name=BUILTIN)
    for component in _components_of(manager, builtins):
        registry.add(component, BUILTIN, __version__)

    registry.packages = {key: package for package, brought in builtins.FIRST_PARTY.items() for key in brought}
    allow, block = _names(environ.get("GEBM_KIT_LOAD_PLUGINS")), _names(environ.get("GEBM_KIT_BLOCK_PLUGINS"))
    statuses = [*unreadable]
    for entry in sorted(entry_points, key=lambda e: (_distribution(e)[0], e.name)):
        statuses.append(_load(manager, registry, entry, allow, block or frozenset()))
    for bad in statuses:
        if bad.state == "failed" and environ.get("GEBM_KIT_STRICT_PLUGINS") == "1":
            raise PluginError(
                f"plugin {bad.distribution} (entry point {bad.name}) failed: {bad.error}",
                hint="GEBM_KIT_STRICT_PLUGINS=1 makes this fatal; unset it to continue without the plugin.",
            )
    for status in statuses:
        if status.state != "ok":
            reason = f"failed to load ({status.error})" if status.state == "failed" else f"is blocked ({status.error})"
            registry.missing_notes[canonical(status.distribution)] = f"plugin {status.distribution!r} {reason}"
    return Discovery(registry, LoadReport(tuple(statuses)))


@functools.cache
def installed() -> Discovery:
    """Run `discover` for this process's environment, once."""
    return discover()


def _names(value: str | None) -> frozenset[str] | None:
    return None if value is None else frozenset(canonical(part.strip()) for part in value.split(",") if part.strip())


def _entry_points() -> tuple[list[importlib.metadata.EntryPoint], list[PluginStatus]]:
    """Find every entry point of the group; also report distributions whose metadata can't be read."""
    group = hookspecs.ENTRY_POINT_GROUP
    try:
        return list(importlib.metadata.entry_points(group=group)), []
    except Exception:  # one malformed entry_points.txt anywhere: ask each distribution on its own
        found: dict[tuple[str, str], importlib.metadata.EntryPoint] = {}
        bad: list[PluginStatus] = []
    for dist in importlib.metadata.distributions():
        name = "unknown"
        try:
            name = str(dist.metadata["Name"])
            for entry in dist.entry_points.select(group=group):
                found.setdefault((canonical(name), entry.name), entry)
        except Exception as error:
            if hookspecs.ENTRY_POINT_GROUP in (dist.read_text("entry_points.txt") or ""):
                detail = f"its entry_points.txt can't be read: {_one_line(error)}"
                bad.append(PluginStatus("", name, "", "", state="failed", error=detail))
    return list(found.values()), bad


def _distribution(entry: importlib.metadata.EntryPoint) -> tuple[str, str]:
    dist = getattr(entry, "dist", None)
    try:
        return (str(dist.metadata["Name"] or entry.name), str(dist.version)) if dist is not None else (entry.name, "")
    except Exception:  # its metadata is damaged
        return entry.name, ""


def _load(
    manager: pluggy.PluginManager,
    registry: Registry,
    entry: importlib.metadata.EntryPoint,
    allow: frozenset[str] | None,
    block: frozenset[str],
) -> PluginStatus:
    distribution, version = _distribution(entry)
    status = functools.partial(PluginStatus, entry.name, distribution, version, entry.value)
    names = {canonical(entry.name), canonical(distribution)}
    if canonical(distribution) == BUILTIN:
        return status(state="failed", error=f"the name {BUILTIN} belongs to the kit itself")
    if names & block:
        return status(state="blocked", error="named in GEBM_KIT_BLOCK_PLUGINS")
    if allow is not None and not names & allow:
        return status(state="blocked", error="not named in GEBM_KIT_LOAD_PLUGINS")
    plugin: Any = None
    try:
        with _modules_rolled_back(entry.module), contextlib.redirect_stdout(sys.stderr):  # stdout is for results
            plugin = entry.load()
            module = sys.modules.get(entry.module)
            api = getattr(plugin, "api_version", getattr(module, "api_version", hookspecs.API_VERSION))
            if api != hookspecs.API_VERSION:
                raise PluginError(f"it was written for plugin API {api!r}; this kit speaks {hookspecs.API_VERSION}")
            manager.register(plugin, name=f"{distribution}/{entry.name}")
            components = _components_of(manager, plugin)
            trial = Registry()  # names that this distribution gives twice fail here, before anything is kept
            for record in (r for r in registry if canonical(r.distribution) == canonical(distribution)):
                trial.add(record.component, distribution)
            for component in components:
                trial.add(component, distribution)
            path = str(getattr(module, "__file__", None) or "")
    except (Exception, SystemExit) as error:
        if plugin is not None and manager.is_registered(plugin):
            manager.unregister(plugin)
        return status(state="failed", error=_one_line(error))
    notes = []
    for component in components:
        if any(
            r.component.name == component.name and r.distribution == BUILTIN for r in registry.of_kind(component.kind)
        ):
            notes.append(
                f"{component.kind} {component.name!r} is a built-in and keeps its name; "
                f"this plugin's is {distribution}:{component.name}"
            )
    for component in components:
        registry.add(component, distribution, version)
    provided = tuple(f"{c.kind}:{c.name}" for c in components)
    return status(path=path, components=provided, notes=tuple(notes))


def _components_of(manager: pluggy.PluginManager, plugin: Any) -> list[Component]:
    """Call ``plugin``'s own hook and check what it returns."""
    callers = manager.get_hookcallers(plugin) or []
    if not any(caller.name == "gebm_components" for caller in callers):
        raise PluginError("it implements no gebm_components hook")
    others = [p for p in manager.get_plugins() if p is not plugin]
    results = manager.subset_hook_caller("gebm_components", remove_plugins=others)()
    if len(results) != 1 or isinstance(results[0], str | bytes) or not isinstance(results[0], Iterable):
        returned = _shorten(results[0] if results else None)  # pluggy leaves a None out of the results
        raise PluginError(f"gebm_components returned {returned}, not a list of Component records")
    components = list(results[0])
    for component in components:
        if not isinstance(component, Component):
            raise PluginError(f"gebm_components returned {_shorten(component)} where a Component record belongs")
    return components


def _shorten(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return text if isinstance(error, PluginError) else f"{type(error).__name__}: {text}".rstrip(": ")


@contextlib.contextmanager
def _modules_rolled_back(module: str) -> Iterator[None]:
    """On failure, forget the modules of the plugin's own package that were imported inside the block."""
    top = module.partition(".")[0]
    before = set(sys.modules)
    try:
        yield
    except (Exception, SystemExit):
        for name in set(sys.modules) - before:
            if name == top or name.startswith(top + "."):
                del sys.modules[name]
        raise


def component_name(kind: str, component: object) -> str:
    """Return the name that the class of ``component`` is registered under, or else the name of the class."""
    target = f"{type(component).__module__}:{type(component).__qualname__}"
    registry = installed().registry
    names = [registry.short_name(r) for r in registry.of_kind(kind) if r.component.target == target]
    return names[0] if names else type(component).__name__
