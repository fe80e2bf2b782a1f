"""FID's Inception features for gebm-kit.

This module names its component as text and imports neither torch nor torchvision.
"""

from __future__ import annotations

import gebm_kit

api_version = 1


@gebm_kit.hookimpl
def gebm_components() -> list[gebm_kit.Component]:
    """Return the plugin's component: one feature map."""
    return [
        gebm_kit.Component(
            "features",
            "inception",
            "gebm_kit_inception.features:Inception",
            "The 2048 features of FID's Inception network, with its standard weights",
        )
    ]
