"""Plugin discovery: entry points are filtered and loaded; those that fail are rolled back and reported.

Environment:
    GEBM_KIT_LOAD_PLUGINS    comma-separated distributions or entry points to load; empty: none; unset: all.
    GEBM_KIT_BLOCK_PLUGINS   the same, never to load.
    GEBM_KIT_STRICT_PLUGINS  "1": a plugin that fails is an error.
"""

from __future__ import annotations

import functools
import importlib.metadata
import itertools
import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import pluggy

from gebm_kit.core import builtins, hookspecs
from gebm_kit.core.components import BUILTIN, Component, Hub, Registry, canonical
from gebm_kit.core.distributions import found_entry_points, identity
from gebm_kit.core.errors import PluginError
from gebm_kit.core.isolation import UNDONE, first_words, isolated
from gebm_kit.core.progress import warn
from gebm_kit.core.version import __version__

MAX_COMPONENTS = 1000
"""Largest number of components that one plugin may have; a hook that yields without end stops there."""

PATIENCE = 10
"""Seconds without a newly imported module after which a plugin's import is given up. Importing torch from a slow disk
takes longer, but goes from module to module."""


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
        assert isinstance(component, Component)
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
    """Run `discover` for this process's environment, once, and warn of plugins that failed or changed the process."""
    found = discover()
    for plugin in found.report:
        if plugin.state == "failed":
            name = plugin.distribution
            warn(f"plugin {name} failed to load ({plugin.error}); `gebm-kit plugins info {name}`")
        for note in plugin.notes:
            if note.endswith(UNDONE):
                warn(f"plugin {plugin.distribution} {note}")
    return found


def _names(value: str | None) -> frozenset[str] | None:
    return None if value is None else frozenset(canonical(part.strip()) for part in value.split(",") if part.strip())


def _entry_points() -> tuple[list[importlib.metadata.EntryPoint], list[PluginStatus]]:
    """Find every entry point of the group; also report distributions whose entry points can't be read."""
    found = found_entry_points(hookspecs.ENTRY_POINT_GROUP)
    bad = [PluginStatus("", f.distribution, f.version, "", state="failed", error=f.problem) for f in found if f.problem]
    return [f.entry for f in found if f.entry is not None], bad


def _distribution(entry: importlib.metadata.EntryPoint) -> tuple[str, str]:
    return identity(getattr(entry, "dist", None), entry.name)


def _load(
    manager: pluggy.PluginManager,
    registry: Registry,
    entry: importlib.metadata.EntryPoint,
    allow: frozenset[str] | None,
    block: frozenset[str],
) -> PluginStatus:
    distribution, version = _distribution(entry)
    status = functools.partial(PluginStatus, first_words(entry.name), distribution, version, first_words(entry.value))
    names = {canonical(entry.name), canonical(distribution)}
    if canonical(distribution) == BUILTIN:
        return status(state="failed", error=f"the name {BUILTIN} belongs to the kit itself")
    if names & block:
        return status(state="blocked", error="named in GEBM_KIT_BLOCK_PLUGINS")
    if allow is not None and not names & allow:
        return status(state="blocked", error="not named in GEBM_KIT_LOAD_PLUGINS")
    if entry.pattern.match(entry.value) is None:
        wanted = "neither 'module' nor 'module:attribute'"
        return status(state="failed", error=f"its entry point {first_words(entry.value, 60)!r} is {wanted}")
    plugin: Any = None
    registered = False
    try:
        with isolated(entry.module, PATIENCE) as changes:
            plugin = entry.load()
            module = sys.modules.get(entry.module)
            api = getattr(plugin, "api_version", getattr(module, "api_version", hookspecs.API_VERSION))
            if api != hookspecs.API_VERSION:
                raise PluginError(
                    f"it was written for plugin API {_shorten(api)}; this kit speaks {hookspecs.API_VERSION}"
                )
            manager.register(plugin, name=f"{distribution}/{entry.name}")
            registered = True
            provides = _components_of(manager, plugin)
            components = [given for given in provides if isinstance(given, Component)]
            hubs = [given for given in provides if isinstance(given, Hub)]
            trial = Registry()  # names that this distribution gives twice fail here, before anything is kept
            for record in (r for r in registry if canonical(r.distribution) == canonical(distribution)):
                trial.add(record.component, distribution)
            for component in components:
                trial.add(component, distribution)
            path = first_words(getattr(module, "__file__", None) or "", 4096)
    except Exception as error:
        if registered:
            manager.unregister(plugin)
        return status(state="failed", error=_one_line(error))
    notes = [f"{change} {UNDONE}" for change in changes]
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
    for hub in hubs:
        if registry.hubs.setdefault(hub.scheme, hub) != hub:
            notes.append(f"{hub.scheme}:// is another plugin's, which keeps it")
    provided = tuple(f"{c.kind}:{c.name}" for c in components)
    return status(path=path, components=provided, notes=tuple(notes))


def _components_of(manager: pluggy.PluginManager, plugin: Any) -> list[Component | Hub]:
    """Call ``plugin``'s own hook and check what it returns."""
    callers = manager.get_hookcallers(plugin) or []
    if not any(caller.name == "gebm_components" for caller in callers):
        raise PluginError("it implements no gebm_components hook")
    others = [p for p in manager.get_plugins() if p is not plugin]
    results = manager.subset_hook_caller("gebm_components", remove_plugins=others)()
    if len(results) != 1 or isinstance(results[0], str | bytes) or not isinstance(results[0], Iterable):
        returned = _shorten(results[0] if results else None)  # pluggy leaves a None out of the results
        raise PluginError(f"gebm_components returned {returned}, not a list of Component records")
    components = list(itertools.islice(results[0], MAX_COMPONENTS + 1))
    if len(components) > MAX_COMPONENTS:
        raise PluginError(f"gebm_components returned more than {MAX_COMPONENTS} components")
    for component in components:
        if not isinstance(component, Component | Hub):
            raise PluginError(f"gebm_components returned {_shorten(component)} where a Component record belongs")
    return [  # checked again, also in subclasses
        Hub(c.scheme, c.target) if isinstance(c, Hub) else Component(c.kind, c.name, c.target, c.summary)
        for c in components
    ]


def _shorten(value: object) -> str:
    return first_words(_Represented(value), 80)


class _Represented:
    """An object whose text is the ``repr`` of another."""

    def __init__(self, value: object) -> None:
        self.value = value

    def __str__(self) -> str:
        return repr(self.value)


def _one_line(error: BaseException) -> str:
    text = first_words(error)
    return text if isinstance(error, PluginError) else f"{type(error).__name__}: {text}".rstrip(": ")


def component_name(kind: str, component: object) -> str:
    """Return the name that the class of ``component`` is registered under, or else the name of the class."""
    target = f"{type(component).__module__}:{type(component).__qualname__}"
    registry = installed().registry
    names = [registry.short_name(r) for r in registry.of_kind(kind) if r.component.target == target]
    return names[0] if names else type(component).__name__
