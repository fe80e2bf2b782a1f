"""An energy on features that a small network has learned from the data beforehand and that are then fixed.

References:
    Projected GANs Converge Faster. A. Sauer et al., NeurIPS 2021. https://arxiv.org/abs/2111.01007
    A Simple Framework for Contrastive Learning of Visual Representations. T. Chen et al., ICML 2020.
    https://arxiv.org/abs/2002.05709
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Literal

import torch
from torch import Tensor, nn

from gebm_kit.core.classes import checked_classes, own_labels
from gebm_kit.core.components import Injected, Range, check_arguments
from gebm_kit.core.errors import UsageError
from gebm_kit.core.interfaces import Dataset, Energy, HasLabels
from gebm_kit.core.layers import Projection, Readout, activation_layer, check_image, check_sizes
from gebm_kit.energies.pretext import Pretext, classify, contrast

FINAL_SIDE = 4
"""Longest side of the trunk's last feature map, as in the ``conv`` energy. Halving continues until no side is longer."""

WIDEST = 4
"""Largest number of channels of the trunk's feature maps, in units of ``width``, half of what the ``conv`` energy has.
A wider trunk takes longer to train before the first step of a run."""

STANDARDISED_BY = 10_000
"""Largest number of training rows, evenly spaced, from which the mean and standard deviation of the features are taken.
Means of so many rows are known to a hundredth of a standard deviation."""


class ProjectedEnergy(Energy):
    """An energy ``E(x) = h(f(x))``: features f, learned before training and then fixed, and an MLP h that is trained.

    (B, channels, height, width) -> (B,). An energy on pixels that is trained on a finished generator finds what gives every
    draw away, such as noise or the checkerboards of strided layers. The base can draw nothing without these traces. The
    energy is then low where they show least instead of where the data are denser, and draws get worse. Features that
    answer another question about the data (which class is this? are these two views of one image?) hardly see such
    traces. They do see shapes, kinds and half-formed things. The base draws too many or too few of those, and that an
    energy can correct.

    f halves the image by strided convolutions and ends in a linear layer, whose output is standardised on the training
    part. f is trained on the training part alone, never on draws, before the first step of a run (``gebm-kit train`` shows
    its progress), and is saved with the energy.

    A metric on features of a network that knows the same labels (``frechet`` with ``classifier``) measures the very thing
    that this energy improves. ``features: contrastive`` uses no labels and is the control.

    Args:
        features: the task of f. ``labels``: the classes of labelled data; ``contrastive``: to tell two random views of an
            image from views of other images; ``auto``: labels if the data have at least two classes, else contrastive.
        width: channels of the first convolution of f.
        dim: F, the number of features.
        hidden: widths of the hidden layers of h; empty for an energy that is linear in the features.
        steps: number of training steps of f, with 128 images each; 0 keeps the random initial weights.
        bound: bound b of the energy's absolute value, ``E(x) = b tanh(h(f(x)) / b)``, in nats; null: no bound. Weights of
            base draws are then at most ``exp(2 beta b)`` times each other, so a few of them can't carry the model.
        conditional: whether the energy scores a point as one of a class, for data with labels. A linear functional of the
            class, of the last hidden layer of h, is then added to h (a projection energy); the bound acts on the sum.
        data_shape: (channels, height, width).
        num_classes: number of classes of the data, or None.

    Raises:
        DataError: the data are not images.
        RecipeError: a width is below 1.
        UsageError: another argument is outside its range; `fit` gets data without labels for ``features: labels``;
            ``conditional`` is set for data without labels.
    """

    mean: Tensor
    std: Tensor
    fitted: Tensor

    def __init__(
        self,
        features: Literal["auto", "labels", "contrastive"] = "auto",
        width: Annotated[int, Range(1, None)] = 32,
        dim: Annotated[int, Range(1, None)] = 64,
        hidden: list[int] = [128, 128],  # noqa: B006  (read only)
        steps: Annotated[int, Range(0, None)] = 1500,
        bound: Annotated[float | None, Range(0, None, low_open=True)] = None,
        conditional: bool = False,
        *,
        data_shape: Annotated[tuple[int, ...], Injected],
        num_classes: Annotated[int | None, Injected] = None,
    ) -> None:
        super().__init__()
        check_arguments(self, features=features, width=width, dim=dim, steps=steps)
        if bound is not None:
            check_arguments(self, bound=bound)
        check_sizes("hidden", hidden)
        channels, *sides = check_image("the projected energy", data_shape)
        self.features, self.steps, self.dim, self.bound = features, steps, dim, bound
        self.trunk = _trunk(channels, sides, width, dim)
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("std", torch.ones(dim))
        self.register_buffer("fitted", torch.zeros((), dtype=torch.bool))
        layers: list[nn.Module] = []
        size = dim
        for wide in hidden:
            layers += [nn.Linear(size, wide), activation_layer("silu")]
            size = wide
        self.head = nn.Sequential(*layers)
        self.readout = Readout(size)
        self.conditional = conditional
        self.num_classes = checked_classes("the projected energy", num_classes, conditional)
        if self.num_classes is not None:
            self.projection = Projection(self.num_classes, size)
        self.trunk.requires_grad_(False)

    def fit(
        self, dataset: Dataset, device: torch.device, seed: int, on_step: Callable[[int, int], None] | None = None
    ) -> None:
        """Learn f from the training part.

        Args:
            dataset: the data.
            device: where to compute; f stays there afterwards.
            seed: seed of the order of images, of the views and of the task's own layers, which are discarded.
            on_step: called with the number of steps done and the number of all steps.

        Raises:
            UsageError: ``features`` is ``labels`` and the data have no labels, or one class.
        """
        pretext = self.pretext(dataset)
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            torch.manual_seed(seed)
            self.trunk.to(device).requires_grad_(True).train()
            try:
                if self.steps:
                    pretext(self.trunk, self.dim, dataset, self.steps, device, on_step)
            finally:
                self.trunk.requires_grad_(False).eval()
        split = dataset.split("train")
        num = min(len(split), STANDARDISED_BY)
        rows = torch.arange(num) * len(split) // num
        with torch.no_grad():
            found = torch.cat([self.trunk(split.batch(part).to(device, self.mean.dtype)) for part in rows.split(1000)])
            self.mean.copy_(found.mean(0))
            self.std.copy_(found.std(0).clamp_min(1e-6))
        self.fitted.fill_(True)

    def forward(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
        labels = own_labels("energy", self, labels)
        found = self.head((self.trunk(x) - self.mean) / self.std)
        energy: Tensor = self.readout(found)
        if labels is not None:
            energy = energy + self.projection(found, labels)
        return energy if self.bound is None else self.bound * torch.tanh(energy / self.bound)

    def pretext(self, dataset: Dataset) -> Pretext:
        """Return the task from which f is learned on ``dataset``.

        Raises:
            UsageError: ``features`` is ``labels`` and the data have no labels, or one class.
        """
        labelled = isinstance(dataset, HasLabels) and dataset.num_classes >= 2
        if self.features == "labels" and not labelled:
            raise UsageError(
                "energy 'projected' with features: labels needs data of two classes or more, and these have "
                + ("one class" if isinstance(dataset, HasLabels) else "no labels"),
                hint="Use features: contrastive, which needs no labels.",
            )
        return contrast if self.features == "contrastive" or not labelled else classify


def _trunk(channels: int, sides: list[int], width: int, dim: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    size, wider = channels, width
    while max(sides) > FINAL_SIDE or size == channels:
        down, across = (2 if side > FINAL_SIDE else 1 for side in sides)
        layers += [nn.Conv2d(size, wider, 3, (down, across), 1), activation_layer("silu")]
        sides = [-(-sides[0] // down), -(-sides[1] // across)]
        size, wider = wider, min(2 * wider, WIDEST * width)
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(size * sides[0] * sides[1], dim))
