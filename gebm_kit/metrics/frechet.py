"""Fréchet distance between Gaussian fits of features, extrapolated to infinitely many draws."""

from __future__ import annotations

from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from gebm_kit.core.interfaces import Dataset, EvalContext, Metric
from gebm_kit.metrics.feature_space import Doubts, OfReference, check_features, check_num_rows, feature_space

PART_COUNTS = (1, 2, 3, 4)
"""Numbers of equal parts that the draws are cut into, one after another; the line is fitted to the sizes N, N/2, N/3, N/4.

More parts would steady the slope but make the smallest part smaller (`ROWS_PER_FEATURE`).
"""

ROWS_PER_FEATURE = 2
"""Least rows per feature in the smallest part; with fewer there is no extrapolation.

On 16 standard normal features the plain distance to the truth is on average 0.57 from 150 rows and 0.043 from 2,000; the
intercept is -0.06 and 0.001.
"""

MAX_SHUFFLES, SHUFFLE_BUDGET = 8, 512
"""How often the draws are shuffled and cut again, to average out the luck of one cut: ``512 / F``, from 1 to 8 times.

The number falls with F because each part costs an eigendecomposition of an (F, F) matrix.
"""


class Moments(NamedTuple):
    """Mean (F,) and covariance (F, F)."""

    mean: Tensor
    covariance: Tensor


class ReferenceFit(NamedTuple):
    """Moments of the reference, and the symmetric square root (F, F) of their covariance."""

    moments: Moments
    root: Tensor


class Frechet(Metric):
    """Squared Fréchet distance between Gaussian fits of the features of draws and of the reference.

    ``d^2 = |m1 - m2|^2 + tr(S1 + S2 - 2 (S1^{1/2} S2 S1^{1/2})^{1/2})``, in float64, with both roots from symmetric
    eigendecompositions. With fewer rows than features (pixels of large images), the rows' inner products are decomposed
    instead, so that no (F, F) matrix is formed. On Inception features this is the FID.

    The plain estimate from N draws is biased upwards by about c/N. Since c depends on the model, the estimate favours models
    with a small c. With ``extrapolate`` the draws are shuffled and cut into 1, 2, 3 and 4 disjoint equal parts, a few times.
    A line in 1/(part size) is fitted to the mean distance of the parts, and its intercept is the value. This removes the
    bias of order 1/N; the value can be slightly negative when the truth is near zero. If N/4 is below 2 F, the plain
    estimate is returned instead, and the protocol says ``extrapolated: false``.

    The reference is used as it is: its own finite size M adds about c'/M to every value, the same for data, base and GEBM.
    The value of held-out data (``metrics.data.frechet``) shows how large that is. Ratios of distances that are not large
    compared with it are conservative (nearer to 1 than the truth).

    With no more rows than features a covariance can't have full rank, and the value is mostly bias; a warning says so.

    Args:
        features: feature map; ``auto`` is ``classifier`` for labelled data, else ``pixels``.
        extrapolate: whether to extrapolate to infinite N.

    References:
        GANs Trained by a Two Time-Scale Update Rule. M. Heusel et al., NeurIPS 2017. https://arxiv.org/abs/1706.08500
        Effectively Unbiased FID and Inception Score and where to find them. M. J. Chong, D. Forsyth, CVPR 2020.
        https://arxiv.org/abs/1911.07023
    """

    name: ClassVar[str] = "frechet"

    least_rows = 2

    def __init__(self, features: str = "auto", extrapolate: bool = True) -> None:
        self.features = features
        self.extrapolate = extrapolate
        self._reference = OfReference(_fit)
        self._doubts = Doubts()

    def __call__(self, context: EvalContext) -> dict[str, float]:
        check_num_rows(context, 2, self.name)
        space = feature_space(self.features, context)
        samples = space.of(context.samples, "the draws")
        self._doubt(min(len(samples), len(context.reference)), samples.shape[1])
        if self._extrapolates(samples):
            return {self.name: extrapolated(samples, self._reference(space, context), context.generator)}
        if min(len(samples), len(context.reference)) < samples.shape[1]:
            return {self.name: float(distance_of_rows(samples, space.of(context.reference, "the reference rows")))}
        reference = self._reference(space, context)
        return {self.name: float(frechet_distance(moments(samples), reference.moments, reference.root))}

    def check(self, dataset: Dataset) -> None:
        """Raise if the feature map does not exist or can't be used with the dataset."""
        check_features(self.features, dataset, self.name)

    def protocol(self, context: EvalContext) -> dict[str, Any]:
        space = feature_space(self.features, context)
        dim = space.map(context.samples[:1]).shape[1]
        extrapolates = self.extrapolate and len(context.samples) // PART_COUNTS[-1] >= ROWS_PER_FEATURE * dim
        return {**super().protocol(context), **space.protocol(), "dimension": dim, "extrapolated": extrapolates}

    def _doubt(self, rows: int, dim: int) -> None:
        """Warn if a covariance of ``dim`` features is estimated from too few rows to have full rank."""
        if rows <= dim:
            self._doubts.warn(
                (rows, dim),
                f"metric {self.name}: {rows:,} rows (draws or reference) can't fill a covariance of {dim:,} features, whose "
                f"rank is at most {rows - 1:,}. The value is mostly the bias of so few rows: compare it with values at the "
                f"same number only, and not with published ones. Use more than {dim:,} of both, fewer features, or kid.",
            )

    def _extrapolates(self, samples: Tensor) -> bool:
        return self.extrapolate and len(samples) // PART_COUNTS[-1] >= ROWS_PER_FEATURE * samples.shape[1]


class Fid(Frechet):
    """Fréchet inception distance as published: the plain ``frechet`` at the N of the protocol, without extrapolation.

    ``FID = |m1 - m2|^2 + tr(S1 + S2 - 2 (S1 S2)^{1/2})`` of means and unbiased covariances of the features. In papers the
    features are the 2048 of the Inception network of 2015 (``inception``, plugin gebm-kit-inception). A value on other
    features is comparable only with values on the same features, which the protocol names. The value falls with N (the bias
    is about c/N): 10,000 or 50,000 draws are usual, and values at different N must not be compared.

    Draws are scored against held-out data (``fid``) and against training data (``fid.train``), which papers often quote.

    Args:
        features: feature map; ``auto`` is ``classifier`` for labelled data, else ``pixels``.

    References:
        GANs Trained by a Two Time-Scale Update Rule. M. Heusel et al., NeurIPS 2017. https://arxiv.org/abs/1706.08500
        On Aliased Resizing and Surprising Subtleties in GAN Evaluation. G. Parmar, R. Zhang, J.-Y. Zhu, CVPR 2022.
        https://arxiv.org/abs/2104.11222
    """

    name: ClassVar[str] = "fid"
    against_train: ClassVar[bool] = True

    def __init__(self, features: str = "auto") -> None:
        super().__init__(features, extrapolate=False)


def moments(features: Tensor) -> Moments:
    """Return mean and unbiased covariance of rows, (N, F)."""
    mean = features.mean(0)
    centred = features - mean
    return Moments(mean, centred.T @ centred / (len(features) - 1))


def frechet_distance(first: Moments, second: Moments, root: Tensor | None = None) -> Tensor:
    """Return the squared Fréchet distance of two Gaussians, (); ``root``: that of the second's covariance, if known."""
    root = _square_root(second.covariance) if root is None else root
    product = root @ first.covariance @ root
    cross = torch.linalg.eigvalsh(0.5 * (product + product.T)).clamp_min(0.0).sqrt().sum()
    return (
        (first.mean - second.mean).square().sum()
        + first.covariance.diagonal().sum()
        + second.covariance.diagonal().sum()
        - 2.0 * cross
    )


def distance_of_rows(first: Tensor, second: Tensor) -> Tensor:
    """Return `frechet_distance` of the moments of rows, (N, F) and (M, F), from matrices of min(N, M) rows and columns.

    With S1 = A'A and S2 = B'B, where A and B are the scaled centred rows, tr (S1^{1/2} S2 S1^{1/2})^{1/2} is the sum of
    the singular values of AB'.
    """
    means = first.mean(0), second.mean(0)
    a, b = ((x - mean) / (len(x) - 1) ** 0.5 for x, mean in zip((first, second), means, strict=True))
    inner = a @ b.T if len(a) <= len(b) else b @ a.T
    cross = torch.linalg.eigvalsh(inner @ inner.T).clamp_min(0.0).sqrt().sum()
    return (means[0] - means[1]).square().sum() + a.square().sum() + b.square().sum() - 2.0 * cross


def extrapolated(samples: Tensor, reference: Moments | ReferenceFit, generator: torch.Generator) -> float:
    """Return the intercept at 1/N = 0 of the line through the mean distances of the parts; samples: (N, F)."""
    target, root = reference if isinstance(reference, ReferenceFit) else (reference, _square_root(reference.covariance))
    sizes = [len(samples) // parts for parts in PART_COUNTS]
    distances = torch.zeros(len(PART_COUNTS), dtype=torch.float64)
    shuffles = max(1, min(MAX_SHUFFLES, SHUFFLE_BUDGET // samples.shape[1]))
    for _ in range(shuffles):
        # Consecutive draws of a chain are alike; after shuffling, all parts of one size are equally good.
        shuffled = samples[torch.randperm(len(samples), generator=generator).to(samples.device)]
        for place, (parts, size) in enumerate(zip(PART_COUNTS, sizes, strict=True)):
            blocks = shuffled[: size * parts].split(size)
            mean = torch.stack([frechet_distance(moments(block), target, root) for block in blocks]).mean()
            distances[place] += mean.cpu() / shuffles
    x = 1.0 / torch.tensor(sizes, dtype=torch.float64)
    slope = ((x - x.mean()) * (distances - distances.mean())).sum() / (x - x.mean()).square().sum()
    return float(distances.mean() - slope * x.mean())


def _fit(reference: Tensor) -> ReferenceFit:
    found = moments(reference)
    return ReferenceFit(found, _square_root(found.covariance))


def _square_root(matrix: Tensor) -> Tensor:
    """Return the symmetric square root; eigenvalues that rounding made negative count as zero."""
    values, vectors = torch.linalg.eigh(matrix)
    return (vectors * values.clamp_min(0.0).sqrt()) @ vectors.T
