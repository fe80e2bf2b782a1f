"""Checks that plugin authors run on their own components, targets with known answers, and statistical tests.

from gebm_kit.testing import check_sampler

def test_my_sampler():
    check_sampler(MySampler())

There is one check for each kind of component. Each begins with the constructor's signature (`check_signature`), and its
failures name the component, its package, file and line.
"""

from gebm_kit.testing.conformance import check_signature
from gebm_kit.testing.data_checks import check_dataset
from gebm_kit.testing.host_sync import HostSyncError, forbid_host_sync
from gebm_kit.testing.logger_checks import check_logger
from gebm_kit.testing.model_checks import check_base, check_energy
from gebm_kit.testing.objective_checks import check_loss, check_penalty
from gebm_kit.testing.sampler_checks import SAMPLER_CHECKS, check_sampler, estimates, invariance, movement
from gebm_kit.testing.scoring_checks import check_features, check_metric
from gebm_kit.testing.targets import Target, all_targets

__all__ = [
    "SAMPLER_CHECKS",
    "HostSyncError",
    "Target",
    "all_targets",
    "check_base",
    "check_dataset",
    "check_energy",
    "check_features",
    "check_logger",
    "check_loss",
    "check_metric",
    "check_penalty",
    "check_sampler",
    "check_signature",
    "estimates",
    "forbid_host_sync",
    "invariance",
    "movement",
]
