"""A class as an energy: how unlikely a classifier finds it.

References:
    Your GAN is Secretly an Energy-based Model. T. Che et al., NeurIPS 2020. https://arxiv.org/abs/2003.06060
    Plug & Play Generative Networks. A. Nguyen et al., CVPR 2017. https://arxiv.org/abs/1612.00005
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

import torch
from torch import Tensor

from gebm_kit.core.classes import own_labels
from gebm_kit.core.components import Injected, OfKind, Range, check_arguments
from gebm_kit.core.errors import UsageError
from gebm_kit.core.interfaces import Dataset, Energy, FeatureMap, HasClassNetwork, ReportsFit
from gebm_kit.core.plugins import installed

DEFAULT_FEATURES = "classifier"
"""Feature map of a null ``features``."""


class ClassifierEnergy(Energy):
    """An energy ``E(x) = -scale log p(target | x)`` by the classifier of a feature map; (B, *D) -> (B,).

    Without a target it is conditional, ``E(x, y) = -scale log p(y | x)``: in a `sum` with a trained conditional energy it
    makes draws of a class clearer cases of it.

    A generator that knows nothing of classes, tilted by this energy, draws the class: the latent posterior is
    ``prior(z) p(target | G(z))^(beta scale)``, by Bayes' rule the generator's law of the class at 1. The energy has no
    parameters to train. The feature map's classifier is trained on the labelled data beforehand, or read from the cache, and
    then fixed; it is saved with a run.

    A classifier is sure of much that is no data. A larger ``scale`` or beta therefore buys more certainty with less variety.

    Args:
        target: class, from 0 to the number of classes - 1; null: the class that each draw is asked to be of.
        features: feature map with a classifier that is differentiable, with its parameters; null: ``classifier``.
        scale: factor of the log-probability, above 0.
        data_shape: ``*D``.
        num_classes: number of classes of the data.

    Raises:
        UsageError: the data have no labels, or no such class; the feature map has no differentiable classifier.
    """

    frozen = True
    fitted: Tensor

    def __init__(
        self,
        target: Annotated[int | None, Range(0, None)] = None,
        features: Annotated[FeatureMap | None, OfKind("features")] = None,
        scale: Annotated[float, Range(0, None, low_open=True)] = 1.0,
        *,
        data_shape: Annotated[tuple[int, ...], Injected],
        num_classes: Annotated[int | None, Injected] = None,
    ) -> None:
        super().__init__()
        check_arguments(self, target=target, scale=scale)
        if num_classes is None:
            raise UsageError(
                "energy 'classifier' needs data with labels, and these have none",
                hint="Energy pretrained, with a classifier as a program and target, needs no labels.",
            )
        if target is not None and target >= num_classes:
            raise UsageError(
                f"energy.target={target} does not exist: the data have {num_classes} classes, 0 to {num_classes - 1}"
            )
        chosen: FeatureMap = (
            installed().registry.get("features", DEFAULT_FEATURES).load()() if features is None else features
        )
        if not isinstance(chosen, HasClassNetwork):
            raise UsageError(
                f"energy 'classifier' can't use the feature map {type(chosen).__name__}: it has no classifier that is "
                "differentiable with respect to x",
                hint=f"Use features: {DEFAULT_FEATURES}.",
            )
        self.target, self.scale, self.num_classes = target, float(scale), num_classes
        self.conditional = target is None
        self._features = chosen
        with torch.random.fork_rng(devices=[]):  # its initial weights are never used
            self.network = chosen.class_network(tuple(data_shape), num_classes).eval().requires_grad_(False)
        self.register_buffer("fitted", torch.zeros((), dtype=torch.bool))

    def fit(
        self, dataset: Dataset, device: torch.device, seed: int, on_step: Callable[[int, int], None] | None = None
    ) -> None:
        """Take the classifier that the feature map trains on the training part, or finds in the cache.

        Args:
            dataset: the data, with labels.
            device: where the classifier is trained.
            seed: not used: the feature map has its own.
            on_step: called by a feature map that reports its steps, with those done and all of them.

        Raises:
            UsageError: the dataset has no labels.
        """
        if isinstance(self._features, ReportsFit):
            self._features.on_step = on_step
        self._features.fit(dataset, device)
        assert isinstance(self._features, HasClassNetwork)
        self.network.load_state_dict(self._features.network_weights())
        self.fitted.fill_(True)

    def forward(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
        labels = own_labels("energy", self, labels)
        found: Tensor = self.network(x).log_softmax(1)
        return -self.scale * (found[:, self.target] if labels is None else found.gather(1, labels[:, None])[:, 0])
