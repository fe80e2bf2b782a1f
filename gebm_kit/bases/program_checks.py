"""What a program must do to be a base, checked on a few codes when it is loaded. Each failure has its own message."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from gebm_kit.bases.programs import Program, reason
from gebm_kit.core.errors import UsageError
from gebm_kit.core.priors import Prior, prior_sample

TRIAL_CODES = 16
"""Number of codes on which a program is tried: enough for a batch norm in training mode to show, and quick for any
program."""

TOLERANCE = 1e-3
"""Share of the largest value by which results on the same codes may differ. Rounding differs by less, a batch norm in
training mode by more."""

RANGE_MARGIN = 0.05
"""Share of the data's range by which values may lie outside of it. It lets a generator without a final tanh or sigmoid
overshoot a little; a forgotten ``output_range`` overshoots more."""


@dataclass(frozen=True)
class Shapes:
    """Shapes of a program's input and output for one code, and of a data point.

    Attributes:
        latent: shape of one code.
        output: shape of the program's result for one code.
        data: shape of a data point, which has as many numbers as ``output``.
    """

    latent: tuple[int, ...]
    output: tuple[int, ...]
    data: tuple[int, ...]


@torch.no_grad()
def check_program(
    program: Program, shapes: Shapes, prior: Prior, value_range: tuple[float, float] | None, device: torch.device
) -> None:
    """Check that a program can be a base: shapes, finite values, each row on its own, and a gradient.

    Args:
        program: the program.
        shapes: shapes that it must have.
        prior: distribution of the codes on which it is tried.
        value_range: range of the data in which the values must lie; None: any values are allowed.
        device: where to compute.

    Raises:
        UsageError: the program fails a check; the message names it.
    """
    z = prior_sample(prior, TRIAL_CODES, torch.Generator().manual_seed(0)).to(device, program.dtype)
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
            f"{where} is not a function of its codes: two calls on the same codes differ by {difference:.3g}",
            hint="Export it after .eval(). If it draws noise of its own, fix the noise or make it part of the code.",
        )
    if float((alone - x[:1]).abs().max()) > tolerance:
        raise UsageError(
            f"{where} maps a code on its own and the same code in a batch to different values: its batch norms are in "
            "training mode, so chains would affect each other",
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
            hint="base.latent_shape must be the shape of its input, and it must accept batches of any size.",
        ) from error
    if not isinstance(x, Tensor):
        raise UsageError(
            f"{where} returns a {type(x).__name__}, but must return one tensor",
            hint="Export a module that returns only x.",
        )
    _check_shape(program, x, num, shapes)
    if not x.is_floating_point():
        raise UsageError(f"{where} returns {x.dtype}, but must return floating-point numbers, differentiable in z")
    return x


def _check_shape(program: Program, x: Tensor, num: int, shapes: Shapes) -> None:
    if tuple(x.shape) == (num, *shapes.output) and math.prod(shapes.output) == math.prod(shapes.data):
        return
    each = list(x.shape[1:]) if x.ndim and x.shape[0] == num else None
    made = f"{list(x.shape)} for {num} codes" if each is None else f"{each} for each code"
    declared = "" if shapes.output == shapes.data else f" and base.output_shape is {list(shapes.output)}"
    fits = each is not None and math.prod(each) == math.prod(shapes.data)
    raise UsageError(
        f"{program.path} returns {made}, but the data have {list(shapes.data)}{declared}",
        hint=f"Set base.output_shape={each}; results are then reshaped to the data's shape." if fits else "",
    )


def _check_gradient(program: Program, z: Tensor, shapes: Shapes) -> None:
    where = program.path
    codes = z[:2].clone().requires_grad_()
    with torch.enable_grad():
        try:
            x = program(codes.reshape(2, *shapes.latent))
            # uneven weights, because the plain sum of normalised values is constant
            weights = torch.linspace(0.5, 1.5, x[0].numel(), device=x.device, dtype=x.dtype).reshape(x[0].shape)
            grad = torch.autograd.grad((weights * x).sum(), codes)[0] if x.requires_grad else None
        except RuntimeError as error:
            raise UsageError(f"{where} can't be differentiated with respect to z: {reason(error)}") from error
    if grad is None or not bool(grad.any()):
        raise UsageError(
            f"{where} breaks the gradient with respect to z, which sampling needs",
            hint="Export it without torch.no_grad() or detach() inside, and without torch.jit.optimize_for_inference.",
        )
    if not bool(grad.isfinite().all()):
        raise UsageError(f"{where} has a gradient with respect to z that is not finite (NaN or infinity)")


def _check_range(program: Program, x: Tensor, value_range: tuple[float, float]) -> None:
    """Raise UsageError if ``output_range`` seems to be missing.

    It is when values lie far outside of the data's range, or in [0, 1] although the data's range begins below 0.
    """
    (low, high), least, most = value_range, float(x.min()), float(x.max())
    margin = RANGE_MARGIN * (high - low)
    half = low < 0 <= least and most <= 1 <= high
    if not half and low - margin <= least and most <= high + margin:
        return
    guess = "[0,1]" if least >= 0 and most <= 1 else "[0,255]" if least >= 0 else "[-1,1]"
    raise UsageError(
        f"{program.path} returns values from {least:.3g} to {most:.3g}, but the data lie in [{low:g}, {high:g}]",
        hint=f"Set base.output_range to the range of its values, for example {guess}, which is then mapped to the data's. "
        f"Set it to [{low:g},{high:g}] if the values are right as they are.",
    )
