"""FID's Inception features for gebm-kit. This module names its component as text: no torch, no torchvision is imported."""

from __future__ import annotations

import gebm_kit

api_version = 1


@gebm_kit.hookimpl
def gebm_components() -> list[gebm_kit.Component]:
    """One feature map."""
    return [
        gebm_kit.Component(
            "features",
            "inception",
            "gebm_kit_inception.features:Inception",
            "The 2048 features of FID's Inception network, by its standard weights",
        )
    ]
