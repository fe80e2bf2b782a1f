"""Two-dimensional toy datasets, in their natural units. Toys with a density in closed form have `log_prob`.

Train, valid and test are drawn from separate random streams: they are independent, and the size of one part does not change
the others.

References:
    Unrolled Generative Adversarial Networks. L. Metz et al., ICLR 2017. https://arxiv.org/abs/1611.02163
        (eight Gaussians on a circle of radius 2)
    VEEGAN: Reducing Mode Collapse in GANs using Implicit Variational Learning. A. Srivastava et al., NeurIPS 2017.
        https://arxiv.org/abs/1705.07761 (the 25-mode grid with standard deviation 0.05)
    FFJORD. W. Grathwohl et al., ICLR 2019. https://arxiv.org/abs/1810.01367 (checkerboard, rings, pinwheel)
"""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import Annotated

import torch
from torch import Tensor

from gebm_kit.core.components import Range, check_arguments
from gebm_kit.core.interfaces import SplitName
from gebm_kit.core.seeds import stream
from gebm_kit.data.tensors import TensorDataset

Count = Annotated[int, Range(1, None)]
Positive = Annotated[float, Range(0, None, low_open=True)]


class _Toy(TensorDataset):
    """Points drawn by `_draw`; subclasses set their own parameters first and call `_draw_parts` last."""

    how_to_label = "Set data.labels=true: the component that a point was drawn from is then its class."

    def _draw_parts(self, num_train: int, num_valid: int, num_test: int, seed: int, labels: int | None = None) -> None:
        """Draw the parts; ``labels``: number of components, if they are labels."""
        check_arguments(self, num_train=num_train, num_valid=num_valid, num_test=num_test)
        sizes: dict[SplitName, int] = {"train": num_train, "valid": num_valid, "test": num_test}
        drawn = {part: self._draw(size, stream(seed, type(self).__name__, part)) for part, size in sizes.items()}
        self._fill(
            {part: points.float() for part, (points, _) in drawn.items()},
            labels=None if labels is None else {part: component for part, (_, component) in drawn.items()},
            num_classes=labels,
        )

    @abstractmethod
    def _draw(self, num: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Draw ``num`` independent points, (num, 2) float64, and the component that each is of, (num,) int64."""


class _GaussianMixture(_Toy):
    """Equal-weight mixture of round Gaussians: ``p(x) = (1/M) sum_m N(x; c_m, std^2 I)``."""

    mode_centres: Tensor
    mode_std: float

    def _draw(self, num: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        mode = torch.randint(len(self.mode_centres), (num,), generator=generator)
        noise = torch.randn(num, 2, generator=generator, dtype=torch.float64)
        return self.mode_centres[mode].double() + self.mode_std * noise, mode

    def log_prob(self, x: Tensor) -> Tensor:
        """Return the log-density in nats; (B, 2) -> (B,)."""
        squared = (x[:, None] - self.mode_centres.to(x)).square().sum(-1) / self.mode_std**2
        constant = math.log(len(self.mode_centres)) + math.log(2 * math.pi * self.mode_std**2)
        return torch.logsumexp(-0.5 * squared, dim=1) - constant


class EightGaussians(_GaussianMixture):
    """Eight equal Gaussians, evenly spaced on a circle.

    Args:
        num_train, num_valid, num_test: number of points in each part.
        radius: radius of the circle.
        std: standard deviation of every mode.
        seed: seed of the draws.
        labels: whether the Gaussian that a point was drawn from is its class.
    """

    def __init__(
        self,
        num_train: Count = 10_000,
        num_valid: Count = 10_000,
        num_test: Count = 10_000,
        radius: Positive = 2.0,
        std: Positive = 0.1,
        seed: int = 0,
        labels: bool = False,
    ) -> None:
        check_arguments(self, radius=radius, std=std)
        angle = torch.arange(8, dtype=torch.float64) * (math.pi / 4)
        self.mode_centres = (radius * torch.stack([angle.cos(), angle.sin()], dim=1)).float()
        self.mode_std = std
        self._draw_parts(num_train, num_valid, num_test, seed, 8 if labels else None)


class TwentyFiveGaussians(_GaussianMixture):
    """Twenty-five equal Gaussians on the grid ``{-4, -2, 0, 2, 4}^2``.

    Args:
        num_train, num_valid, num_test: number of points in each part.
        std: standard deviation of every mode.
        seed: seed of the draws.
        labels: whether the Gaussian that a point was drawn from is its class.
    """

    def __init__(
        self,
        num_train: Count = 10_000,
        num_valid: Count = 10_000,
        num_test: Count = 10_000,
        std: Positive = 0.05,
        seed: int = 0,
        labels: bool = False,
    ) -> None:
        check_arguments(self, std=std)
        line = torch.tensor([-4.0, -2.0, 0.0, 2.0, 4.0])
        self.mode_centres = torch.cartesian_prod(line, line)
        self.mode_std = std
        self._draw_parts(num_train, num_valid, num_test, seed, 25 if labels else None)


class TwoMoons(_Toy):
    """Two interleaved half circles of radius 1, centred on the origin, with Gaussian noise.

    The upper one is ``(cos t - 1/2, sin t - 1/4)``, the lower ``(1/2 - cos t, 1/4 - sin t)``, t uniform on [0, pi].

    Args:
        num_train, num_valid, num_test: number of points in each part.
        noise: standard deviation of the noise.
        seed: seed of the draws.
        labels: whether the half circle is a point's class, 0 for the upper one.
    """

    def __init__(
        self,
        num_train: Count = 10_000,
        num_valid: Count = 10_000,
        num_test: Count = 10_000,
        noise: Annotated[float, Range(0, None)] = 0.05,
        seed: int = 0,
        labels: bool = False,
    ) -> None:
        check_arguments(self, noise=noise)
        self.noise = noise
        self._draw_parts(num_train, num_valid, num_test, seed, 2 if labels else None)

    def _draw(self, num: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        lower = torch.randint(2, (num, 1), generator=generator)
        sign = 1.0 - 2.0 * lower.double()
        angle = math.pi * torch.rand(num, generator=generator, dtype=torch.float64)
        arc = torch.stack([angle.cos() - 0.5, angle.sin() - 0.25], dim=1)
        points = sign * arc + self.noise * torch.randn(num, 2, generator=generator, dtype=torch.float64)
        return points, lower.squeeze(1)


class Checkerboard(_Toy):
    """Points drawn uniformly from the eight dark squares of a 4x4 board on ``[-4, 4]^2``.

    A square of side 2 is dark when its column and row, counted from 0 at the lower left, have an even sum.

    Args:
        num_train, num_valid, num_test: number of points in each part.
        seed: seed of the draws.
        labels: whether the square is a point's class, by columns from the lower left.
    """

    def __init__(
        self,
        num_train: Count = 10_000,
        num_valid: Count = 10_000,
        num_test: Count = 10_000,
        seed: int = 0,
        labels: bool = False,
    ) -> None:
        self._draw_parts(num_train, num_valid, num_test, seed, 8 if labels else None)

    def _draw(self, num: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        column = torch.randint(4, (num,), generator=generator)
        row = 2 * torch.randint(2, (num,), generator=generator) + column % 2
        corner = 2.0 * torch.stack([column, row], dim=1).double() - 4.0
        # [0, 2 - 1e-6), so that rounding to single precision can't carry a point over the edge.
        inside = (2.0 - 1e-6) * torch.rand(num, 2, generator=generator, dtype=torch.float64)
        return corner + inside, 2 * column + row // 2

    def log_prob(self, x: Tensor) -> Tensor:
        """Return ``-log 32`` on the dark squares and minus infinity elsewhere; (B, 2) -> (B,)."""
        place = torch.floor((x + 4.0) / 2.0)
        dark = (place.sum(1) % 2 == 0) & (x >= -4).all(1) & (x < 4).all(1)
        inside = torch.full_like(x[:, 0], -math.log(32.0))
        return torch.where(dark, inside, torch.full_like(inside, -math.inf))


class Rings(_Toy):
    """Concentric rings of radii 1, 2, ..., R; a ring's share of the points is proportional to its radius.

    A point is ``r (cos t, sin t)`` with t uniform and ``r ~ N(R_k, std^2)``. With rho = |x|, the density is
    ``p(x) = sum_k w_k [N(rho; R_k, std^2) + N(-rho; R_k, std^2)] / (2 pi rho)``.

    Args:
        num_train, num_valid, num_test: number of points in each part.
        num_rings: R.
        std: standard deviation of a point's distance from its ring.
        seed: seed of the draws.
        labels: whether the ring is a point's class, from the inner one.
    """

    def __init__(
        self,
        num_train: Count = 10_000,
        num_valid: Count = 10_000,
        num_test: Count = 10_000,
        num_rings: Count = 4,
        std: Positive = 0.08,
        seed: int = 0,
        labels: bool = False,
    ) -> None:
        check_arguments(self, num_rings=num_rings, std=std)
        self.radii = torch.arange(1, num_rings + 1, dtype=torch.float64)
        self.std = std
        self._draw_parts(num_train, num_valid, num_test, seed, num_rings if labels else None)

    def _draw(self, num: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        ring = torch.multinomial(self.radii, num, replacement=True, generator=generator)
        radius = self.radii[ring] + self.std * torch.randn(num, generator=generator, dtype=torch.float64)
        angle = 2 * math.pi * torch.rand(num, generator=generator, dtype=torch.float64)
        return radius[:, None] * torch.stack([angle.cos(), angle.sin()], dim=1), ring

    def log_prob(self, x: Tensor) -> Tensor:
        """Return the log-density in nats; (B, 2) -> (B,)."""
        rho = x.norm(dim=1, keepdim=True)
        radii = self.radii.to(x)
        log_share = torch.log(radii / radii.sum())
        squared = torch.stack([rho - radii, rho + radii]) / self.std
        log_radial = torch.logsumexp(log_share - 0.5 * squared.square(), dim=(0, 2))
        constant = math.log(self.std * math.sqrt(2 * math.pi)) + math.log(2 * math.pi)
        return log_radial - constant - rho.squeeze(1).log()


class Pinwheel(_Toy):
    """Arms that start as Gaussians along evenly spaced rays and are bent by an angle that grows outwards.

    In the frame of arm k a point is ``f = (1 + radial_std a, tangential_std b)`` with a, b standard normal. The point is
    turned by ``2 pi k / arms + rate exp(f_1)`` and scaled by 2.

    Args:
        num_train, num_valid, num_test: number of points in each part.
        arms: number of arms.
        radial_std, tangential_std: spread along and across an arm before it is bent.
        rate: how strongly the arms are bent.
        seed: seed of the draws.
        labels: whether the arm is a point's class.
    """

    def __init__(
        self,
        num_train: Count = 10_000,
        num_valid: Count = 10_000,
        num_test: Count = 10_000,
        arms: Count = 5,
        radial_std: Positive = 0.3,
        tangential_std: Positive = 0.1,
        rate: float = 0.25,
        seed: int = 0,
        labels: bool = False,
    ) -> None:
        check_arguments(self, arms=arms, radial_std=radial_std, tangential_std=tangential_std)
        self.arms, self.rate = arms, rate
        self.radial_std, self.tangential_std = radial_std, tangential_std
        self._draw_parts(num_train, num_valid, num_test, seed, arms if labels else None)

    def _draw(self, num: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        arm = torch.randint(self.arms, (num,), generator=generator).double()
        noise = torch.randn(num, 2, generator=generator, dtype=torch.float64)
        along, across = 1.0 + self.radial_std * noise[:, 0], self.tangential_std * noise[:, 1]
        angle = 2 * math.pi * arm / self.arms + self.rate * along.exp()
        turned = [along * angle.cos() - across * angle.sin(), along * angle.sin() + across * angle.cos()]
        return 2.0 * torch.stack(turned, dim=1), arm.long()
