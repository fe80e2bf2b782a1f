"""zuko's flows as bijections of rows that never wait for the device, work in any dtype, and are saved with their weights.

zuko builds the transform of a flow again at every call. For coupling layers that reads the mask's values, so a GPU's
queue must drain. Their transforms are therefore built once and kept until the module moves.

References:
    Zuko: normalizing flows in PyTorch. F. Rozet et al., 2022. https://github.com/probabilists/zuko
"""

from __future__ import annotations

import copy
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import zuko
from torch import Tensor, nn
from zuko.flows.gaussianization import ElementWiseTransform

from gebm_kit.core.layers import EMBEDDING_SIZE, ClassEmbedding, activation_layer


class Bijection(nn.Module):
    """A bijection ``u = T(v)``, both (B, D), composed of zuko's lazy transforms, with the log-determinant of dT/dv.

    With classes there is a bijection for each: the networks also take a learned vector of the row's class.

    Args:
        flow: the transforms; with classes, its context has `context_size` features.
        num_classes: number of classes, or None.
    """

    def __init__(self, flow: zuko.flows.Flow, num_classes: int | None = None) -> None:
        super().__init__()
        # zuko calls the list `transforms`, and wraps even a single transform in one
        self.parts = nn.ModuleList(flow.transform.transforms)
        if num_classes is not None:
            self.embedding = ClassEmbedding(num_classes, context_size(num_classes))
        self._kept: dict[int, Any] = {}

    def forward(self, v: Tensor, labels: Tensor | None = None) -> Tensor:
        """Return T(v)."""
        for transform in self._transforms(labels):
            v = transform(v)
        return v

    def with_log_det(self, v: Tensor, labels: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return T(v) and log |det dT/dv|, (B,)."""
        total = torch.zeros_like(v[:, 0])
        for transform in self._transforms(labels):
            v, log_det = transform.call_and_ladj(v)
            total = total + log_det
        return v, total

    def inverse(self, u: Tensor, labels: Tensor | None = None) -> Tensor:
        """Return the v with T(v) = u."""
        for transform in reversed(self._transforms(labels)):
            u = transform.inv(u)
        return u

    def _transforms(self, labels: Tensor | None) -> list[Any]:
        """Return the transforms in turn, of the rows' classes; those of coupling layers are built once and kept."""
        context = None if labels is None else self.embedding(labels)
        found = []
        for number, part in enumerate(self.parts):
            if not isinstance(part, zuko.flows.coupling.GeneralCouplingTransform):
                found.append(part(context))
                continue
            if number not in self._kept:
                self._kept[number] = part()
            kept = self._kept[number]
            if context is not None:
                kept = copy.copy(kept)  # potentials evaluate blocks of rows on several threads
                kept.meta = functools.partial(part.meta, context)
            found.append(kept)
        return found

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Bijection:
        self._kept.clear()
        return super()._apply(fn, recurse)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_kept": {}}  # kept transforms hold the original's networks, which a copy must not use


class QuickSpline(zuko.transforms.MonotonicRQSTransform):  # type: ignore[misc]  # zuko is untyped
    """zuko's rational-quadratic spline, with a softmax whose bins are the outer axis in memory.

    On a CPU a softmax over an inner axis of eight entries takes 7 to 15 times as long as one over the outer axis. It was up
    to half of the time of a draw.

    Args:
        widths, heights: unconstrained widths and heights of the bins, (*, K).
        derivatives: unconstrained derivatives at the inner knots, (*, K - 1).
        bound: B of the interval [-B, B]; 5 as in zuko.
        slope: smallest slope of the spline; 1e-3 as in zuko.
    """

    def __init__(
        self,
        widths: Tensor,
        heights: Tensor,
        derivatives: Tensor,
        bound: float = 5.0,
        slope: float = 1e-3,
        **kwargs: Any,
    ) -> None:
        zuko.transforms.Transform.__init__(self, **kwargs)
        smallest = math.log(slope)
        self.horizontal, self.vertical = _knots(widths, bound, smallest), _knots(heights, bound, smallest)
        inner = derivatives / (1 + abs(derivatives / smallest))
        self.derivatives = torch.exp(nn.functional.pad(inner, (1, 1)))


def _knots(sizes: Tensor, bound: float, smallest: float) -> Tensor:
    """Return the ends of bins on [-bound, bound] from their unconstrained sizes; (*, K) -> (*, K + 1)."""
    sizes = sizes / (1 + abs(2 * sizes / smallest))
    shares = torch.softmax(sizes.movedim(-1, 0).contiguous(), dim=0).movedim(0, -1)
    return bound * (2 * torch.cumsum(nn.functional.pad(shares, (1, 0)), dim=-1) - 1)


INITIAL_SPREAD = 0.3
"""Standard deviation of a new mixture's shifts and log scales. A smaller one starts closer to the identity, but makes the
components more alike, so that they take longer to differ."""

BISECTIONS = {torch.float32: 30, torch.float64: 60}
"""Halvings of an inverse's bracket, for each type: enough to reach the type's rounding error."""


class MixtureGaussianization(zuko.transforms.MonotonicTransform):  # type: ignore[misc]  # zuko is untyped
    """The map ``u = Phi^-1(mean_k Phi(v_k))``, ``v_k = exp(a_k) x + b_k``, with tails as accurate as the middle.

    zuko's own `GaussianizationTransform` ends at |u| = 4.9 and is inverted on [-10, 10]. It is not a bijection of the line,
    and layers of it lose mass. This one takes log Phi on the side where Phi is small, so u is unbounded. The derivative is
    a formula, ``log du/dx = log mean_k exp(a_k - v_k^2 / 2) + u^2 / 2``. The inverse is found by bisection between the
    smallest and the largest inverse of a component, ``(u - b_k) exp(-a_k)``, where it must lie.

    Args:
        shift, scale: b and a, (..., K).
    """

    def __init__(self, shift: Tensor, scale: Tensor, **kwargs: Any) -> None:
        super().__init__(None, phi=(shift, scale), **kwargs)
        self.shift, self.log_scale = shift, scale

    def f(self, x: Tensor) -> Tensor:
        return _normal_score(self._scores(x))

    def call_and_ladj(self, x: Tensor) -> tuple[Tensor, Tensor]:
        scores = self._scores(x)
        u = _normal_score(scores)
        log_density = torch.logsumexp(self.log_scale - 0.5 * scores.square(), dim=-1) - math.log(scores.shape[-1])
        return u, log_density + 0.5 * u.square()

    def _inverse(self, y: Tensor) -> Tensor:
        ends = ((y.detach().unsqueeze(-1) - self.shift) * torch.exp(-self.log_scale)).detach()
        side = torch.where(y.detach() < 0, 1.0, -1.0).to(y.dtype)  # compare lower tails below 0, upper ones above

        def log_tail(x: Tensor) -> Tensor:  # increases with x, and is cheaper than `f`
            tails = torch.special.log_ndtr(side.unsqueeze(-1) * self._scores(x))
            return side * torch.logsumexp(tails, dim=-1)

        target = side * (torch.special.log_ndtr(side * y) + math.log(self.shift.shape[-1]))
        return zuko.utils.bisection(log_tail, target, ends.amin(-1), ends.amax(-1), BISECTIONS[y.dtype], self.phi)

    def _scores(self, x: Tensor) -> Tensor:
        return x.unsqueeze(-1) * torch.exp(self.log_scale) + self.shift


def _normal_score(scores: Tensor) -> Tensor:
    """Return ``Phi^-1(mean Phi(scores))`` over the last axis, from the logarithm of the smaller tail; (..., K) -> (...)."""
    log_num = math.log(scores.shape[-1])
    below = torch.logsumexp(torch.special.log_ndtr(scores), dim=-1) - log_num
    above = torch.logsumexp(torch.special.log_ndtr(-scores), dim=-1) - log_num
    log_tail = torch.minimum(below, above)
    with torch.no_grad():
        u = _tail_score(log_tail)
        slope = _log_tail_slope(u)
    u = u - (torch.special.log_ndtr(-u) - log_tail) / slope  # a Newton step, whose gradient is that of the solution
    return torch.where(below < above, -u, u)


def _tail_score(log_tail: Tensor) -> Tensor:
    """Return u >= 0 with ``log Phi(-u)`` close to ``log_tail``: the normal quantile or its asymptote, then Newton steps."""
    near = -torch.special.ndtri(torch.exp(log_tail.clamp(min=-50.0)))
    square = -2.0 * log_tail.clamp(max=-10.0)
    far = (square - torch.log(2 * math.pi * square)).sqrt()
    u = torch.where(log_tail > -50.0, near, far)
    for _ in range(2):
        u = u - (torch.special.log_ndtr(-u) - log_tail) / _log_tail_slope(u)
    return u


def _log_tail_slope(u: Tensor) -> Tensor:
    """Return ``d log Phi(-u) / du``."""
    return -torch.exp(-0.5 * u.square() - 0.5 * math.log(2 * math.pi) - torch.special.log_ndtr(-u))


def context_size(num_classes: int | None) -> int:
    """Return the number of features that the networks take beside their input: the size of a class's vector, or 0."""
    return 0 if num_classes is None else EMBEDDING_SIZE


def _layers(
    kind: type[zuko.flows.Flow],
    dim: int,
    transforms: int,
    hidden: Sequence[int],
    activation: str,
    num_classes: int | None,
    **own: Any,
) -> zuko.flows.Flow:
    """Build a flow of zuko whose layers are set by networks; ``own`` is what this kind alone takes."""
    size = context_size(num_classes)
    networks = {"hidden_features": hidden, "activation": _activation(activation)}
    return kind(dim, size, transforms=transforms, **networks, **own)


def realnvp(
    dim: int, transforms: int, hidden: Sequence[int], activation: str, num_classes: int | None = None
) -> Bijection:
    """Build affine coupling layers, which change the even and the odd coordinates in turn."""
    return Bijection(_layers(zuko.flows.RealNVP, dim, transforms, hidden, activation, num_classes), num_classes)


def maf(dim: int, transforms: int, hidden: Sequence[int], activation: str, num_classes: int | None = None) -> Bijection:
    """Build affine autoregressive layers, whose coordinates are in ascending and descending order in turn."""
    return Bijection(_layers(zuko.flows.MAF, dim, transforms, hidden, activation, num_classes), num_classes)


def nsf(
    dim: int,
    transforms: int,
    hidden: Sequence[int],
    activation: str,
    bins: int,
    *,
    coupling: bool,
    num_classes: int | None = None,
) -> Bijection:
    """Build layers of rational-quadratic splines on [-5, 5], the identity beyond.

    With ``coupling`` a layer transforms the coordinates in two halves, otherwise one by one.
    """
    passes = 2 if coupling else None
    flow = _layers(zuko.flows.NSF, dim, transforms, hidden, activation, num_classes, bins=bins, passes=passes)
    for part in flow.transform.transforms:
        part.univariate = QuickSpline
    return Bijection(flow, num_classes)


def gaussianization(dim: int, transforms: int, components: int, num_classes: int | None = None) -> Bijection:
    """Build layers that map each coordinate through a mixture's CDF and the inverse normal CDF, with rotations between.

    With classes, the mixtures are a network's function of the class's vector; the rotations are those of all classes.
    """
    flow = zuko.flows.GF(dim, context_size(num_classes), transforms=transforms, components=components)
    for part in flow.transform.transforms:
        if isinstance(part, ElementWiseTransform):
            part.univariate = MixtureGaussianization
            with torch.no_grad():
                if num_classes is not None:
                    part.hyper[-1].bias.normal_(0.0, INITIAL_SPREAD)
                    continue
                for parameter in part.phi:
                    parameter.mul_(INITIAL_SPREAD)
    return Bijection(flow, num_classes)


def _activation(name: str) -> Callable[[], nn.Module]:
    return functools.partial(activation_layer, name)


def log_normal(z: Tensor) -> Tensor:
    """Return the log-density of N(0, I) in nats; (B, D) -> (B,)."""
    return -0.5 * (z.square().sum(1) + z.shape[1] * math.log(2 * math.pi))
