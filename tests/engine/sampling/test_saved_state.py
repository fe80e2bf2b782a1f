"""Resuming a sampling after a stop: tuned samplers and chains come back from their files bit for bit."""

from __future__ import annotations

import json
import math

import pytest
import torch

import gebm_kit as gk
from gebm_kit.core.errors import CheckpointError, UsageError
from gebm_kit.core.packing import packed, read_packed, unpacked
from gebm_kit.core.plugins import installed
from gebm_kit.engine.sampling.saved_state import (
    changes,
    differences,
    model_digest,
    parameters,
    restored_state,
    state_tensors,
    with_changes,
)
from gebm_kit.engine.sampling.warmup import warm_up
from gebm_kit.samplers.mala import Mala
from gebm_kit.testing.targets import IdentityBase, linear_gaussian

REGISTRY = installed().registry
SAMPLERS = {REGISTRY.short_name(record): record.load() for record in REGISTRY.of_kind("sampler")}
KERNELS = [name for name, sampler in SAMPLERS.items() if sampler.family == "kernel"]
CPU = torch.device("cpu")


@pytest.mark.parametrize("name", KERNELS)
def test_a_kernel_goes_on_from_its_files_as_if_it_had_never_stopped(name: str) -> None:
    """Tuned sampler, chains and generator are written, read into fresh objects, and stepped."""
    target = linear_gaussian()
    fresh, generator = SAMPLERS[name](), torch.Generator().manual_seed(0)
    with target.potential() as potential:
        start = target.exact(max(16, fresh.min_chains), generator)
        warm = warm_up(fresh, fresh.init(start, potential, generator), potential, generator, 45)
        tensors, record = changes(warm.sampler, fresh)
        content = packed({**tensors, "generator": generator.get_state()}, {"sampler": record})
        chains = packed(state_tensors(warm.state), {})

        found, record = unpacked(content, "here")
        other = torch.Generator()
        other.set_state(found["generator"])
        sampler = with_changes(SAMPLERS[name](), found, record["sampler"], CPU)
        example = sampler.init(start, potential, torch.Generator().manual_seed(5))
        state = restored_state(example, unpacked(chains, "here")[0])
        for _ in range(3):
            warm = warm_up(warm.sampler, warm.state, potential, generator, 0)
            before, _ = warm.sampler.step(warm.state, potential, generator)
            after, _ = sampler.step(state, potential, other)
            for field, left, right in zip(before._fields, before, after, strict=True):
                assert torch.equal(left, right) or (left.isnan() == right.isnan()).all(), field
            warm, state = type(warm)(warm.sampler, (before,), 0), after


class Nested(Mala):
    """A kernel whose tuning leaves all kinds of things behind."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = Mala(0.3)
        self.kept = object()


def test_every_plain_kind_of_attribute_comes_back() -> None:
    original = Nested()
    values = {
        "whole": 3,
        "flag": True,
        "nothing": None,
        "word": "a/b",
        "tiny": 5e-324,
        "odd": 0.1 + 0.2,
        "infinite": math.inf,
        "ladder": (0.0, 0.5, (1.0,)),
        "mixed": [1, {"a": torch.arange(3)}],
        "inverse_mass": torch.rand(4),
    }
    tuned = original.tuned(inner=original.inner.tuned(step_size=0.7, inverse_mass=torch.ones(2)))
    for name, value in values.items():
        setattr(tuned, name, value)
    tensors, record = changes(tuned, original)
    tensors, record = unpacked(packed(tensors, record), "here")
    assert "kept" not in record  # what tuning did not touch is not written
    found = with_changes(original, tensors, record, CPU)
    for name, value in values.items():
        if name not in ("mixed", "inverse_mass"):
            assert getattr(found, name) == value, name
            assert type(getattr(found, name)) is type(value), name
    assert torch.equal(found.inverse_mass, tuned.inverse_mass)
    assert torch.equal(found.mixed[1]["a"], torch.arange(3))
    assert (found.inner.step_size, original.inner.step_size) == (0.7, 0.3)
    assert torch.equal(found.inner.inverse_mass, torch.ones(2))
    assert found.kept is original.kept


def test_what_cant_be_written_is_named() -> None:
    tuned = Mala().tuned(inverse_mass={1, 2})
    with pytest.raises(UsageError, match="'inverse_mass' is of type set after warm-up"):
        changes(tuned, Mala())


def test_a_damaged_file_is_named(tmp_path) -> None:
    path = tmp_path / "unit.safetensors"
    with pytest.raises(CheckpointError, match=r"unit\.safetensors does not exist"):
        read_packed(path)
    content = packed({"a": torch.ones(100)}, {"step": 3})
    for damaged in (content[:200], b"", content[:8], b"\xff" * 50, packed({}, {})[:-3]):
        path.write_bytes(damaged)
        with pytest.raises(CheckpointError, match=r"unit\.safetensors is (damaged|not a safetensors file)"):
            read_packed(path)
    path.write_bytes(content)
    assert read_packed(path)[1] == {"step": 3}


def test_a_state_of_another_sampler_is_refused() -> None:
    with linear_gaussian().potential() as potential:
        generator = torch.Generator().manual_seed(0)
        state = Mala().init(torch.randn(5, 4, generator=generator, dtype=torch.float64), potential, generator)
    tensors = state_tensors(state)
    for name, wrong in (("grad", None), ("grad", torch.ones(4, 4)), ("value", tensors["value"].float())):
        broken = {**tensors, name: wrong} if wrong is not None else {k: v for k, v in tensors.items() if k != name}
        with pytest.raises(CheckpointError, match=f"does not fit the sampler: field '{name}'"):
            restored_state(state, broken)


def test_requests_differ_in_what_makes_other_draws() -> None:
    one, other = parameters(Mala(0.1)), parameters(Mala(0.2))
    assert differences(one, other) == ["step_size was 0.1, now 0.2"]
    assert differences(one, parameters(Mala(0.1))) == []
    assert json.loads(json.dumps(one)) == one
    nested = {"a": {"b": 1, "c": None}, "d": "x" * 64}
    assert differences(nested, {"a": {"b": 2}, "d": "y" * 64}) == [
        "a.b was 1, now 2",
        f"d was {'x' * 12}..., now {'y' * 12}...",
    ]


def test_the_digest_of_a_model_is_of_its_weights_and_layers() -> None:
    target = linear_gaussian()
    known = model_digest(target.model)
    assert model_digest(target.model.train()) == known
    assert model_digest(linear_gaussian().model) == known
    target.model.log_partition.fill_(3.0)  # an estimate about the model, which changes no draw
    assert model_digest(target.model) == known
    state = target.model.state_dict()
    name = next(name for name in state if name != "log_partition")
    state[name].add_(1e-9)
    assert model_digest(target.model) != known
    assert model_digest(gk.GEBM(IdentityBase(2), target.model.energy)) != known
