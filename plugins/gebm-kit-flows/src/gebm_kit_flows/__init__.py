"""Normalizing flows for gebm-kit. This module names the components as text and imports neither torch nor zuko."""

from __future__ import annotations

import gebm_kit

api_version = 1

_MODULE = "gebm_kit_flows"


@gebm_kit.hookimpl
def gebm_components() -> list[gebm_kit.Component]:
    """Return the records of four bases and an energy."""
    return [
        gebm_kit.Component("base", "realnvp", f"{_MODULE}.bases:RealNVP", "Affine coupling flow, fast both ways"),
        gebm_kit.Component("base", "maf", f"{_MODULE}.bases:MAF", "Masked autoregressive flow, fast one way"),
        gebm_kit.Component("base", "nsf", f"{_MODULE}.bases:NSF", "Neural spline flow, coupling or autoregressive"),
        gebm_kit.Component(
            "base", "gaussianization", f"{_MODULE}.bases:Gaussianization", "Gaussianization flow, fast density"
        ),
        gebm_kit.Component("energy", "flow", f"{_MODULE}.energy:FlowEnergy", "Minus the log-density of a flow"),
    ]
