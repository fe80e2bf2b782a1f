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

from gebm_kit.core.components import Component

PROJECT = "gebm_kit"
ENTRY_POINT_GROUP = "gebm_kit"
API_VERSION = 1

hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


@hookspec
def gebm_components() -> Iterable[Component]:
    """The components that this plugin provides, as records whose classes are imported later, when used."""
    return ()
