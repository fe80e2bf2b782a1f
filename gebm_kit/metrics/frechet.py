"""Fréchet distance between Gaussian fits of features, extrapolated to infinitely many draws."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from gebm_kit.core.interfaces import Dataset, EvalContext, Metric
from gebm_kit.metrics.feature_space import check_features, check_rows, feature_space

PARTS = (1, 2, 3, 4)
"""The draws are cut into that many equal parts in turn; the fit is over the sizes N, N/2, N/3, N/4."""

ROWS_PER_FEATURE = 2
"""The smallest part holds at least that many rows a feature, or there is no extrapolation. On 16 standard normal features
the plain distance to the truth is 0.57 on average from 150 rows and 0.043 from 2,000, the intercept -0.06 and 0.001."""

MAX_SHUFFLES, SHUFFLE_BUDGET = 8, 512
"""How often the draws are shuffled and cut anew, to take the luck of one cut out of the value: ``512 / F``, at most 8."""


class Moments(NamedTuple):
    """Mean (F,) and covariance (F, F)."""

    mean: Tensor
    covariance: Tensor


class Frechet(Metric):
    """Squared Fréchet distance between Gaussian fits of the features of draws and of the reference.

    ``d^2 = |m1 - m2|^2 + tr(S1 + S2 - 2 (S1^{1/2} S2 S1^{1/2})^{1/2})``, in float64, with both roots from symmetric
    eigendecompositions; of the rows' inner products where they are fewer than the features (pixels of large images), so
    that no (F, F) matrix is formed. On Inception features this is the FID.

    The plain estimate from N draws is biased upwards by about c/N, with a c that depends on the model, so that it favours
    models by their c. With ``extrapolate`` the draws are shuffled and cut into 1, 2, 3 and 4 disjoint equal parts, a few
    times; the mean distance of the parts is fitted by a line in 1/(part size), and the intercept is the value. It removes
    the bias of order 1/N and can be slightly negative when the truth is near zero. When N/4 is below 2 F the plain estimate
    is given instead, and the protocol says ``extrapolated: false``.

    The reference is taken as it is: its own finite size M adds about c'/M to every value, the same for data, base and
    GEBM. The value of held-out data (``metrics.data.frechet``) shows how large that is; ratios of distances that are not
    large against it are conservative (nearer to 1 than the truth).

    Args:
        features: feature map; ``auto`` is ``classifier`` for labelled data, else ``pixels``.
        extrapolate: fit to infinite N.

    References:
        GANs Trained by a Two Time-Scale Update Rule. M. Heusel et al., NeurIPS 2017. https://arxiv.org/abs/1706.08500
        Effectively Unbiased FID and Inception Score and where to find them. M. J. Chong, D. Forsyth, CVPR 2020.
        https://arxiv.org/abs/1911.07023
    """

    def __init__(self, features: str = "auto", extrapolate: bool = True) -> None:
        self.features = features
        self.extrapolate = extrapolate

    def __call__(self, context: EvalContext) -> dict[str, float]:
        check_rows(context, 2, "frechet")
        space = feature_space(self.features, context)
        reference = space.of(context.reference, "the reference rows")
        samples = space.of(context.samples, "the draws")
        if self._extrapolates(samples):
            return {"frechet": extrapolated(samples, moments(reference), context.generator)}
        if min(len(samples), len(reference)) < samples.shape[1]:
            return {"frechet": float(distance_of_rows(samples, reference))}
        return {"frechet": float(frechet_distance(moments(samples), moments(reference)))}

    def check(self, dataset: Dataset) -> None:
        """The feature map must exist and serve the dataset."""
        check_features(self.features, dataset, "frechet")

    def protocol(self, context: EvalContext) -> dict[str, Any]:
        space = feature_space(self.features, context)
        dim = space.map(context.samples[:1]).shape[1]
        extrapolates = self.extrapolate and len(context.samples) // PARTS[-1] >= ROWS_PER_FEATURE * dim
        return {**super().protocol(context), **space.protocol(), "dimension": dim, "extrapolated": extrapolates}

    def _extrapolates(self, samples: Tensor) -> bool:
        return self.extrapolate and len(samples) // PARTS[-1] >= ROWS_PER_FEATURE * samples.shape[1]


def moments(features: Tensor) -> Moments:
    """Mean and unbiased covariance of rows, (N, F)."""
    mean = features.mean(0)
    centred = features - mean
    return Moments(mean, centred.T @ centred / (len(features) - 1))


def frechet_distance(first: Moments, second: Moments) -> Tensor:
    """Squared Fréchet distance of two Gaussians, ()."""
    root = _square_root(second.covariance)
    product = root @ first.covariance @ root
    cross = torch.linalg.eigvalsh(0.5 * (product + product.T)).clamp_min(0.0).sqrt().sum()
    return (
        (first.mean - second.mean).square().sum()
        + first.covariance.diagonal().sum()
        + second.covariance.diagonal().sum()
        - 2.0 * cross
    )


def distance_of_rows(first: Tensor, second: Tensor) -> Tensor:
    """`frechet_distance` of the moments of rows, (N, F) and (M, F), by matrices of min(N, M) rows and columns.

    With S1 = A'A and S2 = B'B, A and B the scaled centred rows, tr (S1^{1/2} S2 S1^{1/2})^{1/2} is the sum of the singular
    values of AB'.
    """
    means = first.mean(0), second.mean(0)
    a, b = ((x - mean) / (len(x) - 1) ** 0.5 for x, mean in zip((first, second), means, strict=True))
    inner = a @ b.T if len(a) <= len(b) else b @ a.T
    cross = torch.linalg.eigvalsh(inner @ inner.T).clamp_min(0.0).sqrt().sum()
    return (means[0] - means[1]).square().sum() + a.square().sum() + b.square().sum() - 2.0 * cross


def extrapolated(samples: Tensor, reference: Moments, generator: torch.Generator) -> float:
    """Intercept at 1/N = 0 of the line through the mean distances of the parts; samples: (N, F)."""
    sizes = [len(samples) // parts for parts in PARTS]
    distances = torch.zeros(len(PARTS), dtype=torch.float64)
    shuffles = max(1, min(MAX_SHUFFLES, SHUFFLE_BUDGET // samples.shape[1]))
    for _ in range(shuffles):
        # Consecutive draws of a chain are alike: shuffled, a part is as good as any other of its size.
        shuffled = samples[torch.randperm(len(samples), generator=generator).to(samples.device)]
        for place, (parts, size) in enumerate(zip(PARTS, sizes, strict=True)):
            blocks = shuffled[: size * parts].split(size)
            mean = torch.stack([frechet_distance(moments(block), reference) for block in blocks]).mean()
            distances[place] += mean.cpu() / shuffles
    x = 1.0 / torch.tensor(sizes, dtype=torch.float64)
    slope = ((x - x.mean()) * (distances - distances.mean())).sum() / (x - x.mean()).square().sum()
    return float(distances.mean() - slope * x.mean())


def _square_root(matrix: Tensor) -> Tensor:
    """Symmetric square root; eigenvalues that rounding made negative count as zero."""
    values, vectors = torch.linalg.eigh(matrix)
    return (vectors * values.clamp_min(0.0).sqrt()) @ vectors.T
