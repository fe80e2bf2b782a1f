"""The log-partitions of a model's classes, ``A_y = log E_z[exp(-E(G(z, y), y))]``, and that of the whole.

With the class weights pi the joint model of point and class has the log-partition ``A = log sum_y pi_y exp(A_y)``.
"""

from __future__ import annotations

import torch

from gebm_kit.core import estimators
from gebm_kit.core.model import GEBM
from gebm_kit.core.progress import OnProgress, ignore
from gebm_kit.engine.likelihood.log_partition import prior_energies

LEAST_PART = 10
"""Each class has a tenth of all base draws or more, however many classes there are."""


def draws_of_class(num_classes: int, num: int) -> int:
    """Return the base draws behind the log-partition of one class, where ``num`` are meant for them all."""
    return max(num // min(num_classes, LEAST_PART), 1)


def store_log_partition(model: GEBM, num: int, generator: torch.Generator, on_progress: OnProgress = ignore) -> None:
    """Estimate A from ``num`` base draws and store it in the model; of a model with classes, each A_y and then A.

    The draws are shared among the classes as `draws_of_class` says.

    Args:
        generator: on the model's device.
    """
    if model.num_classes is None:
        model.log_partition.copy_(estimators.log_partition(prior_energies(model, num, generator, on_progress)))
        return
    each = draws_of_class(model.num_classes, num)
    for label in range(model.num_classes):
        energies = prior_energies(model.given(label), each, generator, on_progress)
        model.class_log_partition[label] = estimators.log_partition(energies)
    weighted = model.class_weights.double().log() + model.class_log_partition.double()
    model.log_partition.copy_(torch.logsumexp(weighted[model.class_weights > 0], 0))
