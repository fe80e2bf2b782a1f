"""Hugging Face for gebm-kit. This module names the components as text and imports neither torch nor datasets."""

from __future__ import annotations

import gebm_kit

api_version = 1

_MODULE = "gebm_kit_hf"


@gebm_kit.hookimpl
def gebm_components() -> list[gebm_kit.Component | gebm_kit.Hub]:
    """Return the plugin's components, a dataset and two bases, and its hub: hub://OWNER/NAME."""
    return [
        gebm_kit.Component(
            "dataset", "hf", f"{_MODULE}.dataset:HuggingFace", "Images of the Hugging Face datasets library"
        ),
        gebm_kit.Component(
            "base", "diffusers-vae", f"{_MODULE}.vae:DiffusersVae", "Decoder of a variational autoencoder of diffusers"
        ),
        gebm_kit.Component(
            "base",
            "diffusers-pipeline",
            f"{_MODULE}.pipeline:DiffusersPipeline",
            "One-step text-to-image pipeline of diffusers",
        ),
        gebm_kit.Hub("hub", f"{_MODULE}.hub:HuggingFaceHub"),
    ]
