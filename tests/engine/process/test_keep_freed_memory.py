"""Freed memory stays with the process."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

PROGRAM = """
import resource, sys
import torch
from gebm_kit.engine.process.devices import keep_freed_memory

if sys.argv[1] == "keep":
    assert keep_freed_memory()
torch.set_num_threads(1)

def step():
    parts = [torch.ones(2**20) for _ in range(8)]  # 4 MiB each

for _ in range(5):
    step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    step()
print((resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) / 20)
"""


def faults(word: str) -> float:
    """Page faults of a step, in a process whose C library gives back all that is larger than 128 KiB unless it is told."""
    env = {**os.environ, "GLIBC_TUNABLES": "glibc.malloc.mmap_threshold=131072"}
    found = subprocess.run([sys.executable, "-c", PROGRAM, word], check=True, capture_output=True, text=True, env=env)
    return float(found.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
def test_tensors_of_the_same_sizes_cause_no_page_faults():
    assert faults("keep") < 10
    assert faults("as it is") > 1000  # 8 times 1,024 pages of 4 KiB
