"""Every interface that components implement, and the small records that pass between them.

Plugins import from here. Each kind of component has a file of its own beside this one: networks (`Base`, `Energy` and
their capabilities), objectives (`Batch`, `Loss`, `Penalty`), datasets, scoring (`FeatureMap`, `Metric`), sampling,
loggers.

Shapes: B batch, C chains, Z latent size, ``*D`` data shape (``(2,)`` for points, ``(channels, height, width)`` for
images).
"""

from __future__ import annotations

from gebm_kit.core.datasets import (
    Dataset,
    HasClassNames,
    HasLabels,
    HasModes,
    HasReading,
    HasStandardisation,
    HasStoredRows,
    Split,
    SplitName,
)
from gebm_kit.core.loggers import Logger, named_scalars
from gebm_kit.core.networks import (
    Base,
    Energy,
    HasDensity,
    HasEncoder,
    HasFitting,
    HasPretraining,
    HasSource,
    HoldsWeights,
    OnCodes,
)
from gebm_kit.core.objectives import Batch, Loss, LossTerms, NegativeSettings, Part, Penalty, SlopePenalty
from gebm_kit.core.sampling import (
    DIVERGENCE_THRESHOLD,
    Adaptation,
    AnnealedSampler,
    Info,
    Potential,
    Sampler,
    SamplerDirective,
    State,
    TiltedPotential,
    Tunable,
    ValueAndGrad,
)
from gebm_kit.core.scoring import EvalContext, FeatureMap, HasClassNetwork, HasLogits, Metric, ReportsFit
from gebm_kit.core.units import HasMeasured, HasUnits, TableUnits

__all__ = [
    "DIVERGENCE_THRESHOLD",
    "Adaptation",
    "AnnealedSampler",
    "Base",
    "Batch",
    "Dataset",
    "Energy",
    "EvalContext",
    "FeatureMap",
    "HasClassNames",
    "HasClassNetwork",
    "HasDensity",
    "HasEncoder",
    "HasFitting",
    "HasLabels",
    "HasLogits",
    "HasMeasured",
    "HasModes",
    "HasPretraining",
    "HasReading",
    "HasSource",
    "HasStandardisation",
    "HasStoredRows",
    "HasUnits",
    "HoldsWeights",
    "Info",
    "Logger",
    "Loss",
    "LossTerms",
    "Metric",
    "NegativeSettings",
    "OnCodes",
    "Part",
    "Penalty",
    "Potential",
    "ReportsFit",
    "Sampler",
    "SamplerDirective",
    "SlopePenalty",
    "Split",
    "SplitName",
    "State",
    "TableUnits",
    "TiltedPotential",
    "Tunable",
    "ValueAndGrad",
    "named_scalars",
]
