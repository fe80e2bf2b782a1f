"""Checks that plugin authors run on their own components, targets with known answers, and statistical tests.

from gebm_kit.testing import check_sampler

def test_my_sampler():
    check_sampler(MySampler())
"""

from gebm_kit.testing.host_sync import HostSyncError, forbid_host_sync
from gebm_kit.testing.model_checks import check_base, check_energy
from gebm_kit.testing.sampler_checks import SAMPLER_CHECKS, check_sampler, estimates, invariance, movement
from gebm_kit.testing.targets import Target, all_targets

__all__ = [
    "SAMPLER_CHECKS",
    "HostSyncError",
    "Target",
    "all_targets",
    "check_base",
    "check_energy",
    "check_sampler",
    "estimates",
    "forbid_host_sync",
    "invariance",
    "movement",
]
