"""The one pluggy hook of the kit.

A plugin is a module (or object) named by an entry point of the group ``gebm_kit``:

    import gebm_kit

    @gebm_kit.hookimpl
    def gebm_components():
        return [gebm_kit.Component("sampler", "mine", "my_package.mine:Mine", "One line about it")]
"""

from __future__ import annotations

from collections.abc import Iterable

import pluggy

from gebm_kit.core.components import Component, Hub

PROJECT = "gebm_kit"
"""Name under which pluggy marks this project's hooks."""

ENTRY_POINT_GROUP = "gebm_kit"
"""Entry point group in which plugins are registered."""

API_VERSION = 1
"""Version of the plugin interface. A plugin that states another ``api_version`` is reported as failed."""

hookspec = pluggy.HookspecMarker(PROJECT)
"""Mark of the hook's definition, below."""

hookimpl = pluggy.HookimplMarker(PROJECT)
"""Mark of the function by which a plugin implements the hook ``gebm_components``."""


@hookspec
def gebm_components() -> Iterable[Component | Hub]:
    """Return the components and hubs that this plugin provides, as records; their classes are imported only when used."""
    return ()
