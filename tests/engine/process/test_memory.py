"""Running out of memory is an error that says what to reduce."""

import pytest
import torch

from gebm_kit.core.errors import RunFailed
from gebm_kit.engine.process.memory import enough_memory

CPU = torch.device("cpu")


def allocate_far_too_much() -> None:
    torch.empty(2**60)


def raise_torchs_own() -> None:
    raise torch.OutOfMemoryError("CUDA out of memory")


def raise_pythons_own() -> None:
    raise MemoryError


@pytest.mark.parametrize("fail", [allocate_far_too_much, raise_torchs_own, raise_pythons_own])
def test_every_kind_becomes_one_message(fail):
    with pytest.raises(RunFailed) as caught, enough_memory(CPU, "with 30 chains", "Run fewer."):
        fail()
    assert (caught.value.message, caught.value.hint) == ("cpu is out of memory with 30 chains", "Run fewer.")
    assert caught.value.__cause__ is not None


def test_what_was_being_done_may_be_known_only_then():
    step = 1

    def step_then_fail() -> None:
        nonlocal step
        with enough_memory(CPU, lambda: f"at step {step}", ""):
            step = 7
            allocate_far_too_much()

    with pytest.raises(RunFailed, match="^cpu is out of memory at step 7$"):
        step_then_fail()


@pytest.mark.parametrize("error", [RuntimeError("shapes differ"), NotImplementedError("can't allocate memory")])
def test_other_errors_pass(error):
    with pytest.raises(type(error)) as caught, enough_memory(CPU, "at all", ""):
        raise error
    assert caught.value is error
