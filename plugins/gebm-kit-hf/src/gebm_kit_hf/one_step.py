"""The one step of a diffusers scheduler, as numbers: without state, without noise, and differentiable.

With one step, a scheduler's update is affine in the noise and in what the network predicts. It is found by asking the
scheduler itself, once.

References:
    Adversarial Diffusion Distillation. A. Sauer et al., ECCV 2024. https://arxiv.org/abs/2311.17042
    Latent Consistency Models. S. Luo et al., 2023. https://arxiv.org/abs/2310.04378
    Consistency Models. Y. Song et al., ICML 2023. https://arxiv.org/abs/2303.01469
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gebm_kit.core.errors import DataError, UsageError
from gebm_kit.core.progress import warn
from gebm_kit_hf.library import checked_config, quiet, said

SCHEDULERS = (
    "EulerDiscreteScheduler",
    "EulerAncestralDiscreteScheduler",
    "LCMScheduler",
    "TCDScheduler",
    "DDIMScheduler",
    "CMStochasticIterativeScheduler",
)
"""Schedulers with which one step is affine, those of the published one-step models among them."""

FILE = "scheduler_config.json"


@dataclass(frozen=True, slots=True)
class OneStep:
    """``x_0 = from_noise z + from_output f(to_input z, t)``, for a network f and standard normal z.

    Attributes:
        timestep: t, a scalar tensor as the network expects it.
        to_input: factor of the noise in the network's input.
        from_noise, from_output: factors of the noise and of the network's output in the result.
        clip: whether the result is clamped to [-1, 1].
    """

    timestep: Tensor
    to_input: float
    from_noise: float
    from_output: float
    clip: bool


def read_step(library: Any, folder: Path, base: str, timestep: int | None, overrides: dict[str, Any]) -> OneStep:
    """Return the one step of the scheduler in a folder.

    Args:
        library: diffusers.
        folder: folder of the scheduler's configuration.
        base: name of the base, for messages.
        timestep: timestep to start from; None: the scheduler's own for one step.
        overrides: values of the configuration that the pipeline replaces, where it has them.

    Raises:
        DataError: there is no configuration, or it is damaged.
        UsageError: the scheduler is of another kind, is not affine, or takes no timestep.
    """
    if not (folder / FILE).is_file():
        raise DataError(f"{folder} holds no {FILE}")
    config = checked_config(folder / FILE, SCHEDULERS, base)
    config = {key: overrides.get(key, value) for key, value in config.items()}
    kind = str(config["_class_name"])
    try:
        with quiet():
            scheduler = getattr(library, kind).from_config(config)
    except Exception as error:  # the library raises many types
        raise DataError(f"{folder / FILE} describes no scheduler: {said(error)}") from error
    if scheduler.config.get("thresholding") or scheduler.config.get("clip_sample"):
        raise UsageError(
            f"the scheduler in {folder} clips what the network predicts (thresholding, clip_sample), so its step is not "
            f"affine; the base {base} reads schedulers that do not"
        )
    _set_timestep(scheduler, kind, timestep)
    if len(scheduler.timesteps) != 1:
        raise UsageError(f"{kind} in {folder} takes {len(scheduler.timesteps)} steps where one is asked for")
    return _asked(scheduler, kind, folder)


def _set_timestep(scheduler: Any, kind: str, timestep: int | None) -> None:
    try:
        with quiet():
            if timestep is None:
                scheduler.set_timesteps(1)
            else:
                scheduler.set_timesteps(timesteps=[timestep])
    except Exception as error:  # the library raises many types
        if timestep is None:
            raise DataError(f"{kind} can't take one step: {said(error)}") from error
        raise UsageError(
            f"base.timestep={timestep} can't be used with {kind}: {said(error)}",
            hint="Leave base.timestep out: the scheduler then chooses where its one step starts.",
        ) from error
    last = int(scheduler.config.num_train_timesteps)
    start = float(scheduler.timesteps[0])
    if kind != "CMStochasticIterativeScheduler" and start < last / 2:
        warn(
            f"{kind} starts its one step at timestep {start:g} of {last}, where a network expects an image that is nearly "
            "finished, and not noise: is this a model for one step? base.timestep sets where the step starts."
        )


def _asked(scheduler: Any, kind: str, folder: Path) -> OneStep:
    """Return the factors that the scheduler's own functions show."""
    t = scheduler.timesteps[0]
    noise = float(scheduler.init_noise_sigma)

    def step(output: float | Tensor, sample: float | Tensor) -> Tensor:
        asked = copy.deepcopy(scheduler)
        pair = [torch.as_tensor(v, dtype=torch.float64).reshape(-1, 1, 1, 1) for v in (output, sample)]
        with quiet(), torch.random.fork_rng(devices=[]):  # some draw noise that they multiply by zero
            asked.scale_model_input(pair[1], t)
            found: Tensor = asked.step(pair[0], t, pair[1], return_dict=False)[0]
        return found.double().flatten()

    with quiet():
        to_input = float(copy.deepcopy(scheduler).scale_model_input(torch.ones(1, 1, 1, 1, dtype=torch.float64), t))
    a, b = float(step(0.0, 1.0)), float(step(1.0, 0.0))
    trial = torch.tensor([[0.3, -0.2, 0.1], [-0.1, 0.4, 0.25]], dtype=torch.float64)
    gap = (step(trial[0], trial[1]) - (a * trial[1] + b * trial[0])).abs().max()
    if not float(gap) <= 1e-4 * (1 + abs(a) + abs(b)):
        raise UsageError(f"the step of {kind} in {folder} is not affine in noise and prediction")
    clip = bool(scheduler.config.get("clip_denoised", False))
    return OneStep(t.clone(), noise * to_input, noise * a, b, clip)
