"""What a program must do to be a base, checked on a few codes when it is loaded. Each failure has its own message."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gebm_kit.core.errors import UsageError
from gebm_kit.core.priors import Prior, prior_sample
from gebm_kit.core.programs import Program, reason

TRIAL_CODES = 16
"""Number of codes on which a program is tried: enough for a batch norm in training mode to show, and quick for any
program."""

GRADIENT_CODES = 3
"""Number of codes whose gradient is computed: more than one, so that rows can depend on each other; a large program's
graph takes much memory for each."""

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
        channels_last: whether the result has the order rows, columns, channels; the data have the channels first.
    """

    latent: tuple[int, ...]
    output: tuple[int, ...]
    data: tuple[int, ...]
    channels_last: bool = False

    @classmethod
    def of(
        cls, latent: tuple[int, ...], output: Sequence[int] | None, data: tuple[int, ...], channels_last: bool
    ) -> Shapes:
        """Return the shapes; ``output`` is the data's (channels last if so declared) when it is None.

        Raises:
            UsageError: reshaping the output to the data's shape would mix up the axes.
        """
        if channels_last and len(data) != 3:
            raise UsageError(
                f"base.channels_last is for images (channels, rows, columns), but the data have shape {list(data)}"
            )
        order = (*data[1:], data[0]) if channels_last else data
        shapes = cls(latent, tuple(output or order), data, channels_last)
        if math.prod(shapes.output) == math.prod(data) and not _nested(shapes.output, order):
            hint = "Export a program that returns the shape of the data."
            if not channels_last and _is_channels_last(shapes.output, data):
                hint = f"If it returns (rows, columns, channels), {CHANNELS_HINT}"
            raise UsageError(
                f"base.output_shape={list(shapes.output)} can't be reshaped to the data's {list(data)} without mixing up "
                f"the axes: they come in another order than {_named(order, channels_last)}",
                hint=hint,
            )
        return shapes

    def arranged(self, x: Tensor) -> Tensor:
        """Return the program's results in the shape of the data: (B, ``*output``) -> (B, ``*data``)."""
        if not self.channels_last:
            return x.reshape(-1, *self.data)
        return x.reshape(-1, *self.data[1:], self.data[0]).movedim(-1, 1)


CHANNELS_HINT = "set base.channels_last=true: they are then permuted to (channels, rows, columns)."


def _named(order: tuple[int, ...], channels_last: bool) -> str:
    names = " (rows, columns, channels)" if channels_last else " (channels, rows, columns)" if len(order) == 3 else ""
    return f"{list(order)}{names}"


def _nested(one: tuple[int, ...], other: tuple[int, ...]) -> bool:
    """Return whether the one shape merges neighbouring axes of the other, so that a reshape keeps their order."""
    ends = [{math.prod(shape[: n + 1]) for n in range(len(shape))} for shape in (one, other)]
    return ends[0] <= ends[1] or ends[1] <= ends[0]


def _is_channels_last(output: tuple[int, ...], data: tuple[int, ...]) -> bool:
    """Return whether results of this shape can be images (rows, columns, channels), perhaps with merged axes."""
    return len(data) == 3 and _nested(output, (*data[1:], data[0])) and not _nested(output, data)


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
        again, alone, some = (_called(program, codes, shapes) for codes in (z, z[:1], z[-3:]))
    where = program.path
    if not bool(x.isfinite().all()):
        raise UsageError(f"{where} returns values that are not finite (NaN or infinity) for {prior.name} codes")
    tolerance = TOLERANCE * max(float(x.abs().max()), 1e-12)
    difference = float((again - x).abs().max())
    if not difference <= tolerance:  # also NaN
        raise UsageError(
            f"{where} is not a function of its codes: two calls on the same codes differ by {difference:.3g}",
            hint="Export it after .eval(). If it draws noise of its own, fix the noise or make it part of the code.",
        )
    for num, found, expected in ((1, alone, x[:1]), (3, some, x[-3:])):
        if not bool(found.isfinite().all()):
            raise UsageError(
                f"{where} returns values that are not finite (NaN or infinity) for a batch of {num} of its "
                f"{TRIAL_CODES} codes: its rows depend on each other, so chains would affect each other",
                hint=ROWS_HINT,
            )
        if not float((found - expected).abs().max()) <= tolerance:
            raise _mixing(program)
    _check_gradient(program, z, x, shapes)
    if value_range is not None:
        _check_range(program, x, value_range)


ROWS_HINT = (
    "Export it again, after .eval(), and without statistics over the batch (a minibatch deviation, a normalisation over "
    "the rows)."
)


def _mixing(program: Program) -> UsageError:
    return UsageError(
        f"{program.path} maps a code on its own and the same code in a batch to different values: its batch norms are in "
        "training mode, or it computes other statistics over the rows of a batch, so chains would affect each other",
        hint=ROWS_HINT,
    )


def _called(program: Program, z: Tensor, shapes: Shapes) -> Tensor:
    num, where = len(z), program.path
    given = z.clone()
    try:
        x = program(given.reshape(num, *shapes.latent))
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # whatever its author wrote
        raise UsageError(
            f"{where} fails on {num} code{'s' if num > 1 else ''} of shape {list(shapes.latent)}: {reason(error)}",
            hint="base.latent_shape must be the shape of its input, and it must accept batches of any size.",
        ) from error
    if not isinstance(x, Tensor):
        raise UsageError(
            f"{where} returns a {type(x).__name__}, but must return one tensor",
            hint="Export a module that returns only x.",
        )
    _check_shape(program, x, num, shapes)
    if not x.is_floating_point():
        hint = "Export it without the conversion at its end"
        if x.dtype == torch.uint8:
            hint += "; base.output_range=[0,255] maps values of bytes to the data's range"
        raise UsageError(
            f"{where} returns {x.dtype}, but must return floating-point numbers, differentiable in z", hint=f"{hint}."
        )
    if not torch.equal(given, z):
        raise UsageError(
            f"{where} changes the codes that it is given in place, and chains keep theirs",
            hint="Export it without operations in place on its input (mul_, clamp_, ...).",
        )
    return x


def _check_shape(program: Program, x: Tensor, num: int, shapes: Shapes) -> None:
    if tuple(x.shape) == (num, *shapes.output) and math.prod(shapes.output) == math.prod(shapes.data):
        return
    each = tuple(x.shape[1:]) if x.ndim and x.shape[0] == num else None
    made = f"{list(x.shape)} for {num} codes" if each is None else f"{list(each)} for each code"
    order = (*shapes.data[1:], shapes.data[0]) if shapes.channels_last else shapes.data
    declared = " channels first" if shapes.channels_last else ""
    if shapes.output != order:
        declared += f" and base.output_shape is {list(shapes.output)}"
    hint = ""
    if each is not None and math.prod(each) == math.prod(shapes.data):
        if shapes.channels_last and each == shapes.data:
            hint = "Leave out base.channels_last: its images have the channels first, as the data have."
        elif not shapes.channels_last and _is_channels_last(each, shapes.data):
            made += ", which can be images (rows, columns, channels)"
            hint = f"If they are, {CHANNELS_HINT}"
        elif _nested(each, order):
            hint = f"Set base.output_shape={list(each)}; results are then reshaped to the data's shape"
            hint += f", if their numbers are in the order of {_named(order, shapes.channels_last)}."
            if len(shapes.data) == 3 and shapes.data[0] > 1 and not shapes.channels_last:
                hint += " If they are in the order rows, columns, channels, set base.channels_last=true too."
        else:
            hint = "Its axes come in another order: export a program that returns the shape of the data."
    raise UsageError(f"{program.path} returns {made}, but the data have {list(shapes.data)}{declared}", hint=hint)


def _check_gradient(program: Program, z: Tensor, x: Tensor, shapes: Shapes) -> None:
    """Check that the gradient reaches each code, from its own row alone; otherwise say what may have cut it."""
    where = program.path
    if bool((x == x[:1]).all()):
        raise UsageError(
            f"{where} returns the same values for all of {len(x)} codes: it has collapsed, or does not use its input, so "
            "there is no gradient with respect to z",
            hint="Check the weights that were exported with it, and that it maps codes to data.",
        )
    codes = z[:GRADIENT_CODES].clone().requires_grad_()
    with torch.enable_grad():
        try:
            rows = program((codes * 1).reshape(-1, *shapes.latent))  # a copy, which operations in place may change
            # uneven weights, because the plain sum of normalised values is constant
            weights = torch.linspace(0.5, 1.5, x[0].numel(), device=x.device, dtype=x.dtype).reshape(x[0].shape)
            first, grad = None, None
            if rows.requires_grad:
                (first,) = torch.autograd.grad((weights * rows[0]).sum(), codes, retain_graph=True)
                (grad,) = torch.autograd.grad((weights * rows).sum(), codes)
        except RuntimeError as error:
            raise UsageError(f"{where} can't be differentiated with respect to z: {reason(error)}") from error
    if grad is None or first is None:
        raise UsageError(
            f"{where} breaks the gradient with respect to z, which sampling needs",
            hint="Export it without torch.no_grad() or detach() inside, without turning values into bytes or whole numbers "
            "(byte, int, argmax), and without torch.jit.optimize_for_inference.",
        )
    if not bool(grad.isfinite().all()):
        raise UsageError(f"{where} has a gradient with respect to z that is not finite (NaN or infinity)")
    if not bool(grad.any()):
        distinct = x.unique().numel()
        seen = f"; it returned {distinct} distinct values in {x.numel()}" if distinct <= x.numel() // 2 else ""
        raise UsageError(
            f"{where} has a gradient of 0 with respect to z, and sampling needs one: its values do not change with small "
            f"changes of z{seen}",
            hint="Export it without what makes steps: rounding (round, floor, sign), values cut to bytes, argmax or "
            "one-hot codes, values clamped outside their range, or detach() on the path from z.",
        )
    if bool(first[1:].any()):
        raise _mixing(program)


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
