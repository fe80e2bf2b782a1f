"""What a program must do to be a base, tried on a few codes when it is loaded: each way to fail has its message."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from gebm_kit.bases.programs import Program, reason
from gebm_kit.core.errors import UsageError
from gebm_kit.core.priors import Prior, prior_sample

ROWS = 16
"""Codes that a program is tried on."""

TOLERANCE = 1e-3
"""Share of the largest value by which results on the same codes may differ: what rounding does, not what batch norm does."""

OUTSIDE = 0.05
"""Share of the data's range by which values may lie outside it before that is an error."""


@dataclass(frozen=True)
class Shapes:
    """Of one code, of what is returned for it, and of a data point, which has as many numbers."""

    latent: tuple[int, ...]
    output: tuple[int, ...]
    data: tuple[int, ...]


@torch.no_grad()
def check_program(
    program: Program, shapes: Shapes, prior: Prior, value_range: tuple[float, float] | None, device: torch.device
) -> None:
    """Hold a program against what is asked of a base: shapes, finite values, a function of each code alone, a gradient.

    Args:
        value_range: of the data, to hold the values against; None: any will do.

    Raises:
        UsageError: what is wrong.
    """
    z = prior_sample(prior, ROWS, torch.Generator().manual_seed(0)).to(device, program.dtype)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        x = _called(program, z, shapes)
        again, alone = _called(program, z, shapes), _called(program, z[:1], shapes)
    where = program.path
    if not bool(x.isfinite().all()):
        raise UsageError(f"{where} returns values that are not finite (NaN or infinity) for {prior.name} codes")
    tolerance = TOLERANCE * max(float(x.abs().max()), 1e-12)
    difference = float((again - x).abs().max())
    if difference > tolerance:
        raise UsageError(
            f"{where} is no function of its codes: two calls on the same ones differ by {difference:.3g}",
            hint="Export it after .eval(), with any noise of its own held fixed or made part of the code.",
        )
    if float((alone - x[:1]).abs().max()) > tolerance:
        raise UsageError(
            f"{where} returns something else for a code alone than for the same one among others: its batch norms are in "
            "training mode, and chains would disturb one another",
            hint="Export it again, after .eval().",
        )
    _check_gradient(program, z, shapes)
    if value_range is not None:
        _check_range(program, x, value_range)


def _called(program: Program, z: Tensor, shapes: Shapes) -> Tensor:
    num, where = len(z), program.path
    try:
        x = program(z.reshape(num, *shapes.latent))
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # whatever its author wrote
        raise UsageError(
            f"{where} fails on {num} codes of shape {list(shapes.latent)}: {reason(error)}",
            hint="base.latent_shape must be what it takes, and it must take batches of any size.",
        ) from error
    if not isinstance(x, Tensor):
        raise UsageError(
            f"{where} returns a {type(x).__name__}, and must return one tensor",
            hint="Export a module that returns x alone.",
        )
    _check_shape(program, x, num, shapes)
    if not x.is_floating_point():
        raise UsageError(f"{where} returns {x.dtype}, and must return floating-point numbers, differentiable in z")
    return x


def _check_shape(program: Program, x: Tensor, num: int, shapes: Shapes) -> None:
    if tuple(x.shape) == (num, *shapes.output) and math.prod(shapes.output) == math.prod(shapes.data):
        return
    each = list(x.shape[1:]) if x.ndim and x.shape[0] == num else None
    made = f"{list(x.shape)} for {num} codes" if each is None else f"{each} for each code"
    declared = "" if shapes.output == shapes.data else f" and base.output_shape is {list(shapes.output)}"
    fits = each is not None and math.prod(each) == math.prod(shapes.data)
    raise UsageError(
        f"{program.path} returns {made}, the data have {list(shapes.data)}{declared}",
        hint=f"Set base.output_shape={each}, and it is reshaped to the data's." if fits else "",
    )


def _check_gradient(program: Program, z: Tensor, shapes: Shapes) -> None:
    where = program.path
    codes = z[:2].clone().requires_grad_()
    with torch.enable_grad():
        try:
            x = program(codes.reshape(2, *shapes.latent))
            # uneven weights: a sum over normalised values is constant
            weights = torch.linspace(0.5, 1.5, x[0].numel(), device=x.device, dtype=x.dtype).reshape(x[0].shape)
            grad = torch.autograd.grad((weights * x).sum(), codes)[0] if x.requires_grad else None
        except RuntimeError as error:
            raise UsageError(f"{where} can't be differentiated with respect to z: {reason(error)}") from error
    if grad is None or not bool(grad.any()):
        raise UsageError(
            f"{where} breaks the gradient with respect to z, which sampling needs",
            hint="Export it without torch.no_grad() or detach() inside, and not by torch.jit.optimize_for_inference.",
        )
    if not bool(grad.isfinite().all()):
        raise UsageError(f"{where} has a gradient with respect to z that is not finite (NaN or infinity)")


def _check_range(program: Program, x: Tensor, value_range: tuple[float, float]) -> None:
    """Values far outside the data's range, or in [0, 1] where the data begin below, are a forgotten ``output_range``."""
    (low, high), least, most = value_range, float(x.min()), float(x.max())
    margin = OUTSIDE * (high - low)
    half = low < 0 <= least and most <= 1 <= high
    if not half and low - margin <= least and most <= high + margin:
        return
    guess = "[0,1]" if least >= 0 and most <= 1 else "[0,255]" if least >= 0 else "[-1,1]"
    raise UsageError(
        f"{program.path} returns values from {least:.3g} to {most:.3g}, and the data lie in [{low:g}, {high:g}]",
        hint=f"Set base.output_range to the range of its values, {guess} for example, which is mapped to the data's; or to "
        f"[{low:g},{high:g}] if all is as it should be.",
    )
