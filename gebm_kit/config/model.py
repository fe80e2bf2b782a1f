"""Building a recipe's model: base and energy with fresh weights, in the recipe's precision."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from gebm_kit.config.build import build
from gebm_kit.config.schema import Recipe
from gebm_kit.core.contracts import check_base_facts
from gebm_kit.core.model import GEBM

DTYPES = {"float32": torch.float32, "float64": torch.float64, "bfloat16": torch.float32}
"""Data type of parameters and data for each precision (bfloat16 is autocast on float32 parameters)."""


def build_model(recipe: Recipe, facts: Mapping[str, Any]) -> GEBM:
    """Build the recipe's base and energy in its precision, with fresh weights from torch's default generator.

    Args:
        facts: what components may ask to be injected (`data_facts`). A checkpoint's facts also hold ``log_ratio``, whether
            the energy is a log density ratio (without it, the recipe's loss is built once to find out), and ``final``,
            whether the energy is that of the final phase.
    """
    base = build("base", recipe.base, facts)
    check_base_facts(base)
    node = (recipe.final_energy if facts.get("final") else None) or recipe.energy
    energy = build("energy", node, {**facts, "latent_dim": base.latent_dim})
    log_ratio = facts.get("log_ratio")
    if log_ratio is None:
        with torch.random.fork_rng(devices=[]):  # a loss may draw weights of its own; later draws must not depend on it
            loss = build("loss", recipe.loss, {**facts, "latent_dim": base.latent_dim})
        log_ratio = getattr(loss, "log_ratio", True)
    model = GEBM(base, energy, log_ratio=bool(log_ratio))
    return model.to(DTYPES[recipe.precision])
