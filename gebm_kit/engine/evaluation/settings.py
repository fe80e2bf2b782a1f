"""The settings of an evaluation, and settings with some values replaced."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, TypeVar

from gebm_kit.core.interfaces import SplitName
from gebm_kit.engine.datasets.held_out import MAX_ROWS
from gebm_kit.engine.evaluation.budget import default_budget
from gebm_kit.engine.evaluation.feature_maps import FeatureSettings
from gebm_kit.engine.evaluation.subject import eval_section
from gebm_kit.engine.likelihood.estimate_log_partition import Method
from gebm_kit.engine.likelihood.nll import Space
from gebm_kit.engine.sampling.settings import SampleSettings

if TYPE_CHECKING:
    from gebm_kit.config.schema import Recipe


BRIEF_SETS = 3
"""Most draw sets of an evaluation during training, where speed matters more than narrow intervals. Student's interval over
three sets is 4.3 standard errors on each side; over two it would be 12.7."""


Settings = TypeVar("Settings", SampleSettings, "EvaluationSettings")


FLOOR_PART: Mapping[SplitName, SplitName] = {"test": "valid", "valid": "test", "train": "test"}
"""The held-out part that the floor is measured on, for each reference part."""


@dataclass(frozen=True, slots=True)
class EvaluationSettings:
    """Settings of how draws are scored; `SampleSettings` says how they are drawn.

    Attributes:
        num_samples, num_sets: draws in each set, and sets.
        reference: part of the dataset to score against.
        log_partition: how A is estimated, as the recipe key ``eval.log_partition``.
        nll_space: the space of likelihoods, as the recipe key ``nll.space``.
        num_reference: most rows of the reference, and of the training data, to score against.
        features: parameters of feature maps.
        calibrate: whether the beta that fits the validation part best is looked for.
        calibrated: whether the GEBM is sampled at that beta.
        against_train: whether metrics that ask for it (`Metric.against_train`) are scored against training data too.
        continues: whether chains are continued to 2x and 4x their length, for the equilibrium test.
        budget: seconds that the evaluation may take; None: not limited.
        timed: whether the stages' costs are estimated beforehand.
        weighted: whether the model's class weights are not the data's frequencies, so that the data are scored in them.
    """

    num_samples: int
    num_sets: int
    reference: SplitName = "test"
    log_partition: Method = "auto"
    nll_space: Space = "standardised"
    num_reference: int = MAX_ROWS
    features: FeatureSettings = field(default_factory=FeatureSettings)
    against_train: bool = True
    calibrate: bool = True
    calibrated: bool = False
    continues: bool = True
    budget: float | None = None
    timed: bool = True
    weighted: bool = False

    @classmethod
    def of(cls, recipe: Recipe | None) -> EvaluationSettings:
        """Return a recipe's settings; without a recipe, the defaults of recipes."""
        section = eval_section(recipe)
        return cls(
            num_samples=section.num_samples,
            num_sets=section.num_sets,
            log_partition=section.log_partition,
            nll_space="standardised" if recipe is None else recipe.nll.space,
            num_reference=section.num_reference,
            features=FeatureSettings.of(recipe),
            calibrated=recipe is not None and recipe.sample.inverse_temperature == "calibrated",
            budget=section.budget,
            weighted=recipe is not None and recipe.class_weights is not None,
        )

    def budgeted(self, training_seconds: float | None) -> EvaluationSettings:
        """Return the settings with the default budget for a model that was trained for this long, if they have none."""
        return self if self.budget is not None else replace(self, budget=default_budget(training_seconds))


def with_given(settings: Settings, **given: Any) -> Settings:
    """Return the settings with each given value that is not None in place of theirs."""
    return replace(settings, **{name: value for name, value in given.items() if value is not None})
