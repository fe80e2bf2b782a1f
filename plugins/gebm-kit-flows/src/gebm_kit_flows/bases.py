"""Bases with an exact density: bijections of z ~ N(0, I).

References:
    Density estimation using Real NVP. L. Dinh, J. Sohl-Dickstein, S. Bengio, ICLR 2017. https://arxiv.org/abs/1605.08803
    Masked Autoregressive Flow for Density Estimation. G. Papamakarios et al., NeurIPS 2017.
    https://arxiv.org/abs/1705.07057
    Neural Spline Flows. C. Durkan et al., NeurIPS 2019. https://arxiv.org/abs/1906.04032
    Gaussianization Flows. C. Meng et al., AISTATS 2020. https://arxiv.org/abs/2003.01941
"""

from __future__ import annotations

import math
from typing import Annotated, Literal

from torch import Tensor

from gebm_kit.core.classes import checked_classes, own_labels
from gebm_kit.core.components import Injected, Range, check_arguments
from gebm_kit.core.errors import RecipeError
from gebm_kit.core.interfaces import Base
from gebm_kit.core.layers import Activation, check_sizes
from gebm_kit_flows.transforms import Bijection, gaussianization, log_normal, maf, nsf, realnvp

Direction = Literal["density", "sampling"]


class FlowBase(Base):
    """A base ``x = G(z)``, z ~ N(0, I), G a bijection: ``log b(x) = log N(G^-1(x); 0, I) + log |det dG^-1/dx|``.

    ``encode`` is G^-1. ``pretraining_loss`` is the mean of -log b(x) over a batch, in nats. Latent and data space have the
    same number of dimensions, ``prod(data_shape)``. A conditional flow has a bijection for each class; all methods then take
    labels, (B,), as second argument.

    Args:
        bijection: a bijection that takes one pass of each layer's network in one direction, and may take many in the other.
        data_shape: ``*D``.
        fast: the direction that takes one pass: ``density`` (the bijection is G^-1) or ``sampling`` (it is G).
        num_classes: number of classes of the bijection, or None.
    """

    def __init__(
        self,
        bijection: Bijection,
        data_shape: tuple[int, ...],
        fast: Direction = "density",
        num_classes: int | None = None,
    ) -> None:
        super().__init__()
        self.data_shape = tuple(data_shape)
        self.latent_dim = math.prod(self.data_shape)
        self.bijection = bijection
        self.fast = fast
        self.conditional, self.num_classes = num_classes is not None, num_classes

    def forward(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        """Map codes to data, G(z): (B, Z), (B,) -> (B, *D)."""
        labels = own_labels("base", self, labels)
        x = self.bijection.inverse(z, labels) if self.fast == "density" else self.bijection(z, labels)
        return x.unflatten(1, self.data_shape)

    def encode(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
        """Map data to codes, G^-1(x): (B, *D), (B,) -> (B, Z)."""
        labels, rows = own_labels("base", self, labels), x.flatten(1)
        return self.bijection(rows, labels) if self.fast == "density" else self.bijection.inverse(rows, labels)

    def log_prob(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
        """Return log b(x) in nats: (B, *D), (B,) -> (B,)."""
        labels, rows = own_labels("base", self, labels), x.flatten(1)
        if self.fast == "density":
            z, log_det = self.bijection.with_log_det(rows, labels)
            return log_normal(z) + log_det
        z = self.bijection.inverse(rows, labels)
        _, log_det = self.bijection.with_log_det(z, labels)
        return log_normal(z) - log_det

    def pretraining_loss(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
        """Return the mean of -log b(x) in nats: (B, *D), (B,) -> ()."""
        return -self.log_prob(x, labels).mean()


def _dimensions(name: str, data_shape: tuple[int, ...], least: int = 2) -> int:
    """Return the number of dimensions of the data.

    Raises:
        RecipeError: it is below ``least``.
    """
    dim = math.prod(data_shape)
    if dim < least:
        raise RecipeError(f"the {name} base needs data of at least {least} dimensions; these have {dim}")
    return dim


class RealNVP(FlowBase):
    """Affine coupling: half of the coordinates are shifted and scaled by a network's function of the other half.

    Draws and densities cost the same: one pass of each layer's network.

    Args:
        transforms: number of layers.
        hidden: widths of the hidden layers of each network.
        activation: activation of the networks.
        conditional: whether the base makes draws of a class, for data with labels. The networks then take a
            learned vector of the class beside their input.
        data_shape: ``*D``.
        num_classes: number of classes of the data, or None.

    Raises:
        RecipeError: a width is below 1, or the data have one dimension.
        UsageError: another argument is outside its range; ``conditional`` is set for data without labels.
    """

    def __init__(
        self,
        transforms: Annotated[int, Range(1, None)] = 6,
        hidden: list[int] = [128, 128],  # noqa: B006  (read only)
        activation: Activation = "relu",
        conditional: bool = False,
        *,
        data_shape: Annotated[tuple[int, ...], Injected],
        num_classes: Annotated[int | None, Injected] = None,
    ) -> None:
        check_arguments(self, transforms=transforms, activation=activation)
        check_sizes("hidden", hidden)
        dim = _dimensions("realnvp", data_shape)
        classes = checked_classes("the realnvp base", num_classes, conditional)
        bijection = realnvp(dim, transforms, hidden, activation, classes)
        super().__init__(bijection, data_shape, num_classes=classes)


class MAF(FlowBase):
    """Affine autoregressive: each coordinate is shifted and scaled by a network's function of the coordinates before it.

    With ``fast: density`` a density costs one pass of each layer's network, and a draw D passes. With ``fast: sampling`` (an
    inverse autoregressive flow) it is the other way round. Use ``density`` for maximum likelihood, and ``sampling`` for
    chains in latent space and joint training.

    Args:
        transforms: number of layers.
        hidden: widths of the hidden layers of each network.
        activation: activation of the networks.
        fast: the direction that takes one pass.
        conditional: whether the base makes draws of a class, for data with labels. The networks then take a
            learned vector of the class beside their input.
        data_shape: ``*D``.
        num_classes: number of classes of the data, or None.

    Raises:
        RecipeError: a width is below 1, or the data have one dimension.
        UsageError: another argument is outside its range; ``conditional`` is set for data without labels.
    """

    def __init__(
        self,
        transforms: Annotated[int, Range(1, None)] = 5,
        hidden: list[int] = [128, 128],  # noqa: B006  (read only)
        activation: Activation = "relu",
        fast: Direction = "density",
        conditional: bool = False,
        *,
        data_shape: Annotated[tuple[int, ...], Injected],
        num_classes: Annotated[int | None, Injected] = None,
    ) -> None:
        check_arguments(self, transforms=transforms, activation=activation, fast=fast)
        check_sizes("hidden", hidden)
        dim = _dimensions("maf", data_shape)
        classes = checked_classes("the maf base", num_classes, conditional)
        super().__init__(maf(dim, transforms, hidden, activation, classes), data_shape, fast, classes)


class NSF(FlowBase):
    """Monotonic rational-quadratic splines on [-5, 5] in each coordinate, the identity beyond. Standardise the data.

    With ``scheme: coupling`` a draw takes two passes of each layer's network and a density takes one. ``autoregressive`` is
    more flexible, but its slow direction takes D passes.

    Args:
        transforms: number of layers.
        hidden: widths of the hidden layers of each network.
        activation: activation of the networks.
        bins: number of bins of each spline.
        scheme: what a coordinate's spline depends on: the other half of the coordinates, or all coordinates before it.
        fast: the direction that takes one pass.
        conditional: whether the base makes draws of a class, for data with labels. The networks then take a
            learned vector of the class beside their input.
        data_shape: ``*D``.
        num_classes: number of classes of the data, or None.

    Raises:
        RecipeError: a width is below 1, or the data have one dimension.
        UsageError: another argument is outside its range; ``conditional`` is set for data without labels.
    """

    def __init__(
        self,
        transforms: Annotated[int, Range(1, None)] = 4,
        hidden: list[int] = [64, 64],  # noqa: B006  (read only)
        activation: Activation = "relu",
        bins: Annotated[int, Range(2, None)] = 8,
        scheme: Literal["coupling", "autoregressive"] = "coupling",
        fast: Direction = "density",
        conditional: bool = False,
        *,
        data_shape: Annotated[tuple[int, ...], Injected],
        num_classes: Annotated[int | None, Injected] = None,
    ) -> None:
        check_arguments(self, transforms=transforms, activation=activation, bins=bins, scheme=scheme, fast=fast)
        check_sizes("hidden", hidden)
        dim = _dimensions("nsf", data_shape)
        classes = checked_classes("the nsf base", num_classes, conditional)
        coupling = scheme == "coupling"
        bijection = nsf(dim, transforms, hidden, activation, bins, coupling=coupling, num_classes=classes)
        super().__init__(bijection, data_shape, fast, classes)


class Gaussianization(FlowBase):
    """Layers of a rotation and, in each coordinate, the CDF of a mixture followed by the inverse normal CDF.

    A density costs one pass. A draw is the slow direction: it inverts every coordinate by bisection, which takes 30 passes
    in float32. Its gradient comes from the implicit function theorem and takes one pass.

    Args:
        transforms: number of layers.
        components: number of components in each coordinate's mixture.
        conditional: whether the base makes draws of a class, for data with labels. Each mixture is then a network's
            function of a learned vector of the class.
        data_shape: ``*D``.
        num_classes: number of classes of the data, or None.

    Raises:
        UsageError: an argument is outside its range; ``conditional`` is set for data without labels.
    """

    def __init__(
        self,
        transforms: Annotated[int, Range(1, None)] = 4,
        components: Annotated[int, Range(1, None)] = 8,
        conditional: bool = False,
        *,
        data_shape: Annotated[tuple[int, ...], Injected],
        num_classes: Annotated[int | None, Injected] = None,
    ) -> None:
        check_arguments(self, transforms=transforms, components=components)
        dim = _dimensions("gaussianization", data_shape, 1)
        classes = checked_classes("the gaussianization base", num_classes, conditional)
        super().__init__(gaussianization(dim, transforms, components, classes), data_shape, num_classes=classes)
