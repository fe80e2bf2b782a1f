"""A recipe's model: base and energy with fresh weights, in the recipe's precision."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from gebm_kit.config.build import build
from gebm_kit.config.schema import Recipe
from gebm_kit.core.model import GEBM

DTYPES = {"float32": torch.float32, "float64": torch.float64, "bfloat16": torch.float32}
"""Type of parameters and data under each precision (bfloat16 is autocast on float32 parameters)."""


def build_model(recipe: Recipe, facts: Mapping[str, Any]) -> GEBM:
    """The recipe's base and energy, with fresh weights from torch's default generator, in the recipe's precision."""
    base = build("base", recipe.base, facts)
    energy = build("energy", recipe.energy, {**facts, "latent_dim": base.latent_dim})
    with torch.random.fork_rng(devices=[]):  # a loss may have weights of its own; the model's do not depend on them
        loss = build("loss", recipe.loss, {**facts, "latent_dim": base.latent_dim})
    model = GEBM(base, energy, log_ratio=bool(getattr(loss, "log_ratio", True)))
    return model.to(DTYPES[recipe.precision])
