"""The sampler that suits the model: chosen by a pilot of base draws, and replaced until its draws pass their tests."""

from __future__ import annotations

from typing import Annotated, Literal

from gebm_kit.core.components import Range, check_arguments
from gebm_kit.core.errors import UsageError
from gebm_kit.core.sampling import SamplerDirective

Candidate = Literal["imh", "isir", "sir", "hmc", "chees", "smc"]

CANDIDATES: tuple[Candidate, ...] = ("imh", "isir", "sir", "hmc", "chees", "smc")
"""Samplers to choose among, unless ``candidates`` says otherwise."""


class Auto(SamplerDirective):
    """Chooses the sampler with the lowest predicted cost of an effective draw, and checks the draws before it accepts them.

    A pilot of up to 4,096 base draws (in an evaluation, the base draws that it scores) shows how far the model is from its
    base. With w = exp(-tilt) the weight of a draw, an independence proposal z' is accepted with probability
    min(1, w(z') / w(z)), so the pilot's weights alone give the autocorrelation times of `imh` and `isir` and the effective
    size of `sir`'s pool. A gradient costs three evaluations. For `hmc`, `chees` and `smc` the cost is a count of gradients.
    There are as few chains as give the draws that are asked for, since each has its own warm-up, and the states that are
    kept are spread over all steps.

    With a Pareto k above 0.7 the pilot may have missed much of the mass. Up to 1, `imh` and `isir` are tried where they cost
    less than half of the best sampler that follows the gradient, which comes next if their draws fail. Beyond 1 they
    are not considered.

    Draws are accepted once R-hat is at most ``max_rhat``, the other diagnostics are within their limits, and the chains are
    in equilibrium: the mean of U does not drift between the two halves of the run, and agrees with the pilot's weighted mean
    for independence proposals. Otherwise warm-up and steps are doubled, as long as that helps. Then `smc` and `pt`, which
    come from the base in many small steps, are tried. If nothing holds within the budget, the diagnostics say so.

    The same seed gives the same choice and the same draws; no time is measured.

    Args:
        max_rhat: largest R-hat of draws that are accepted.
        budget: evaluations of the model that all attempts after the first may take together, as a multiple of those of the
            first attempt, or of `hmc` with the same settings where that costs more; 0: a single attempt.
        candidates: names of the samplers to choose among.

    Raises:
        UsageError: an argument is outside its range.

    References:
        Metropolized independent sampling with comparisons to rejection sampling and importance sampling. J. S. Liu,
        Statistics and Computing 1996. https://doi.org/10.1007/BF00162521 (the spectrum of `imh` from its weights)
        Pareto smoothed importance sampling. A. Vehtari et al., JMLR 2024. https://arxiv.org/abs/1507.02646
        Rank-normalization, folding, and localization: an improved R-hat. A. Vehtari et al., Bayesian Analysis 2021.
        https://arxiv.org/abs/1903.08008
    """

    def __init__(
        self,
        max_rhat: Annotated[float, Range(1, None, low_open=True)] = 1.05,
        budget: Annotated[float, Range(0, None)] = 8.0,
        candidates: tuple[Candidate, ...] = CANDIDATES,
    ) -> None:
        check_arguments(self, max_rhat=max_rhat, budget=budget, candidates=candidates)
        if not candidates:
            raise UsageError(f"candidates must name at least one sampler of {', '.join(CANDIDATES)}")
        self.max_rhat = max_rhat
        self.budget = budget
        self.candidates = tuple(candidates)
