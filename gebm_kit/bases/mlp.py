"""A fully connected generator, for points and small images."""

from __future__ import annotations

import math
from typing import Annotated, Literal

import torch
from torch import Tensor, nn

from gebm_kit.core.classes import checked_classes, own_labels
from gebm_kit.core.components import Injected, Range, check_arguments
from gebm_kit.core.errors import RecipeError
from gebm_kit.core.interfaces import Base
from gebm_kit.core.layers import EMBEDDING_SIZE, Activation, ClassEmbedding, activation_layer, check_sizes, to_range
from gebm_kit.core.priors import PRIORS, Prior, PriorName


class MlpBase(Base):
    """A fully connected map ``G(z) = range(W_k a(... a(W_1 z + b_1) ...) + b_k)``; (B, Z) -> (B, *D).

    For bounded data ``range`` is a tanh rescaled to ``value_range``; otherwise it multiplies by ``data_scale``.

    Args:
        latent_dim: Z.
        hidden: widths of the hidden layers, from latent to data; empty for an affine map.
        activation: activation of the hidden layers.
        norm: normalisation before each activation. Batch norm uses running statistics in eval mode, so draws in training
            and draws by a sampler come from slightly different maps. Layer norm is the same map in both.
        prior: distribution of z: ``normal``, ``uniform`` on [-1, 1]^Z or ``sphere`` of radius sqrt(Z).
        data_scale: rough size of the coordinates of unbounded data.
        conditional: whether the base makes draws of a class, for data with labels. The first layer then takes a learned
            vector of the class beside z.
        data_shape: ``*D``.
        value_range: (low, high) of the data, or None.
        num_classes: number of classes of the data, or None.

    Raises:
        RecipeError: a width is below 1; ``data_scale`` is set for bounded data, where it has no effect.
        UsageError: another argument is outside its range; ``conditional`` is set for data without labels.
    """

    def __init__(
        self,
        latent_dim: Annotated[int, Range(1, None)] = 16,
        hidden: list[int] = [256, 256],  # noqa: B006  (read only)
        activation: Activation = "relu",
        norm: Literal["none", "batch", "layer"] = "none",
        prior: PriorName = "normal",
        data_scale: Annotated[float, Range(0, None, low_open=True)] = 1.0,
        conditional: bool = False,
        *,
        data_shape: Annotated[tuple[int, ...], Injected],
        value_range: Annotated[tuple[float, float] | None, Injected] = None,
        num_classes: Annotated[int | None, Injected] = None,
    ) -> None:
        super().__init__()
        check_arguments(
            self, latent_dim=latent_dim, activation=activation, norm=norm, prior=prior, data_scale=data_scale
        )
        check_sizes("hidden", hidden)
        if value_range is not None and data_scale != 1.0:
            raise RecipeError(f"data_scale={data_scale:g} has no effect on data bounded by {value_range}; leave it out")
        self.latent_dim = latent_dim
        self.data_shape = tuple(data_shape)
        self.value_range = value_range
        self.data_scale = float(data_scale)
        self._prior = PRIORS[prior](latent_dim)
        self.conditional = conditional
        self.num_classes = checked_classes("the mlp base", num_classes, conditional)
        layers: list[nn.Module] = []
        size = latent_dim
        if self.num_classes is not None:
            self.embedding = ClassEmbedding(self.num_classes, EMBEDDING_SIZE)
            size += EMBEDDING_SIZE
        for width in hidden:
            # A batch norm would subtract a bias in front of it again.
            layers.append(nn.Linear(size, width, bias=norm != "batch"))
            if norm != "none":
                layers.append(nn.BatchNorm1d(width) if norm == "batch" else nn.LayerNorm(width))
            layers.append(activation_layer(activation))
            size = width
        layers.append(nn.Linear(size, math.prod(self.data_shape)))
        self.layers = nn.Sequential(*layers)

    @property
    def prior(self) -> Prior:
        return self._prior

    def forward(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        labels = own_labels("base", self, labels)
        if labels is not None:
            z = torch.cat([z, self.embedding(labels).to(z.dtype)], dim=1)
        output = to_range(self.layers(z), self.value_range)
        if self.data_scale != 1.0:
            output = self.data_scale * output
        return output.unflatten(1, self.data_shape)
