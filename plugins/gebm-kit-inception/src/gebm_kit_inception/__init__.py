"""Feature maps of images from published networks for gebm-kit: FID's Inception network, DINOv2 and CLIP.

This module names its components as text and imports neither torch nor torchvision.
"""

from __future__ import annotations

import gebm_kit

api_version = 1


@gebm_kit.hookimpl
def gebm_components() -> list[gebm_kit.Component]:
    """Return the plugin's components: three feature maps."""
    return [
        gebm_kit.Component(
            "features",
            "inception",
            "gebm_kit_inception.features:Inception",
            "The 2048 features of FID's Inception network, with its standard weights",
        ),
        gebm_kit.Component(
            "features",
            "dinov2",
            "gebm_kit_inception.dinov2:Dinov2",
            "The class token of DINOv2, with its published weights",
        ),
        gebm_kit.Component(
            "features",
            "clip",
            "gebm_kit_inception.clip:Clip",
            "The image embedding of CLIP, with its published weights; for the metric cmmd",
        ),
    ]
