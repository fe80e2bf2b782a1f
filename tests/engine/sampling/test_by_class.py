"""Draws by class: of the right law with every sampler, in the order of their labels, and written with them."""

from __future__ import annotations

import csv
import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor

import gebm_kit as gk
from gebm_kit.core.errors import UsageError
from gebm_kit.core.interfaces import Base, Energy
from gebm_kit.core.plugins import installed
from gebm_kit.core.progress import GebmKitWarning
from gebm_kit.core.units import TableUnits
from gebm_kit.data.arrays import Arrays
from gebm_kit.engine.sampling.by_class import merged, share_of, wanted_labels
from gebm_kit.engine.sampling.settings import SampleSettings
from gebm_kit.engine.sampling.table_files import table_content

K = 3
CENTRES = torch.tensor([[0.0, 0.0], [4.0, 0.0], [0.0, -6.0]])
MEANS = torch.tensor([[1.0, 0.0], [4.0, 1.0], [0.0, -5.0]])
QUICK = {"num_chains": 60, "warmup": 60, "steps": 60, "thin": 10}

pytestmark = pytest.mark.filterwarnings("ignore::gebm_kit.core.progress.GebmKitWarning")


class Shifted(Base):
    conditional = True
    num_classes = K

    def __init__(self) -> None:
        super().__init__()
        self.latent_dim, self.data_shape = 2, (2,)
        self.register_buffer("centres", CENTRES.clone())

    def forward(self, z: Tensor, labels: Tensor) -> Tensor:
        return z + self.centres[labels]


class Bowls(Energy):
    conditional = True
    num_classes = K

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("means", MEANS.clone())

    def forward(self, x: Tensor, labels: Tensor) -> Tensor:
        return 0.5 * (x - self.means[labels]).square().sum(1)


def model() -> gk.GEBM:
    """The posterior of class y is N((c_y + m_y) / 2, I / 2)."""
    return gk.GEBM(Shifted(), Bowls())


SAMPLERS = [
    r.component.name for r in installed().registry.of_kind("sampler") if r.component.name not in ("dot", "dgflow")
]


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_each_class_has_its_own_law(sampler: str) -> None:
    draws = gk.sample(model(), sampler, labels="all", num_samples=900, seed=1, **QUICK)
    assert draws.labels is not None
    for label in range(K):
        x = draws.x[draws.labels == label]
        assert len(x) == 300
        torch.testing.assert_close(x.mean(0), (CENTRES + MEANS)[label] / 2, rtol=0.0, atol=0.25)
        torch.testing.assert_close(x.std(0), torch.full((2,), math.sqrt(0.5)), rtol=0.25, atol=0.0)
    torch.testing.assert_close(draws.x, draws.z + CENTRES[draws.labels])


def test_labels_are_in_the_order_asked_for() -> None:
    asked = torch.tensor([2, 0, 0, 1, 2])
    draws = gk.sample(model(), "imh", labels=asked, num_samples=12, **QUICK)
    assert draws.labels is not None
    assert draws.labels.dtype == torch.int64
    assert draws.labels.tolist() == [2, 0, 0, 1, 2, 2, 0, 0, 1, 2, 2, 0]
    assert draws.diagnostics.num_samples == 12
    assert len(draws.chain) == 12
    for label in range(K):  # chains are of one class
        others = draws.chain[draws.labels != label]
        assert not set(draws.chain[draws.labels == label].tolist()) & set(others.tolist())


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        (1, [1, 1, 1, 1]),
        (np.int64(2), [2, 2, 2, 2]),
        (torch.tensor(0), [0, 0, 0, 0]),
        ([2, 1], [2, 1, 2, 1]),
        (np.array([0, 1]), [0, 1, 0, 1]),
        ([torch.tensor(2), np.array(1)], [2, 1, 2, 1]),
        (range(3), [0, 1, 2, 0]),
        ("all", [0, 1, 2, 0]),
    ],
)
def test_words_for_classes(asked: object, expected: list[int]) -> None:
    found = wanted_labels(model(), asked, 4, seed=0)
    assert found is not None
    assert found.tolist() == expected


@pytest.mark.parametrize("asked", [{1}, {1: 2}, iter([1]), b"\x01", bytearray(b"\x01"), 1j])
def test_labels_of_other_types_are_refused_by_their_type(asked: object) -> None:
    with pytest.raises(UsageError, match=f"labels are of type {type(asked).__name__}; allowed are whole numbers"):
        wanted_labels(model(), asked, 4, seed=0)


def test_more_classes_than_draws_are_refused_with_what_to_do() -> None:
    with pytest.raises(UsageError, match="3 labels were given for 1 draw; ") as caught:
        wanted_labels(model(), "all", 1, seed=0)
    assert "--num-samples" in caught.value.hint


def test_without_labels_classes_have_the_frequencies_of_the_data() -> None:
    one = model()
    one.class_weights.copy_(torch.tensor([0.7, 0.0, 0.3]))
    found = wanted_labels(one, None, 4000, seed=3)
    assert found is not None
    shares = torch.bincount(found, minlength=K) / 4000
    assert shares[1] == 0
    assert float(shares[0]) == pytest.approx(0.7, abs=0.04)
    again = wanted_labels(one, None, 4000, seed=3)
    assert again is not None
    assert torch.equal(found, again)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (3, "there is no class 3; allowed are whole numbers from 0 to 2"),
        (-1, "there is no class -1"),
        (1.0, "there is no class 1.0"),
        (True, "there is no class True"),
        ("2", "there is no class '2'"),
        ([0, "1"], "there is no class '1'"),
        ([], "no class was given"),
        (torch.zeros(2, 2, dtype=torch.int64), r"labels have shape \(2, 2\)"),
        (torch.tensor([0.5]), "there is no class 0.5"),
        ([0] * 9, "9 labels were given for 8 draws"),
    ],
)
def test_bad_labels_are_refused(asked: object, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        gk.sample(model(), "imh", labels=asked, num_samples=8)  # type: ignore[arg-type]


def test_classes_of_a_model_without_any_are_refused() -> None:
    with pytest.raises(UsageError, match="the class 1 was asked for, and the model has no classes"):
        gk.sample(model().given(0), "imh", labels=1)


@pytest.mark.parametrize("suffix", [".safetensors", ".npz"])
def test_files_carry_labels(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"draws{suffix}"
    draws = gk.sample(model(), "imh", labels=[2, 0], num_samples=8, out=path, **QUICK)
    found = gk.load_draws(path)
    assert torch.equal(found.labels, draws.labels)
    assert torch.equal(found.x, draws.x)
    plain = gk.sample(model().given(0), "imh", num_samples=8, out=tmp_path / f"plain{suffix}", **QUICK)
    assert plain.labels is None
    assert gk.load_draws(tmp_path / f"plain{suffix}").labels is None


NAMES = ("red wine", "weiß", "rosé")


def named() -> gk.GEBM:
    one = model()
    one.class_names = NAMES
    return one


@pytest.mark.parametrize("names", [None, NAMES])
@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_tables_have_a_column_of_classes(tmp_path: Path, suffix: str, names: tuple[str, ...] | None) -> None:
    one, path = model(), tmp_path / f"draws{suffix}"
    one.class_names = names
    draws = gk.sample(one, "imh", labels=[2, 0], num_samples=8, out=path, **QUICK)
    expected = [str(k) if names is None else names[k] for k in draws.labels.tolist()]
    if suffix == ".csv":
        lines = list(csv.reader(path.read_text(encoding="utf-8").splitlines()))
        assert lines[0] == ["x1", "x2", "class"]
        assert [line[2] for line in lines[1:]] == expected
        assert [[float(v) for v in line[:2]] for line in lines[1:]] == draws.x.double().tolist()
    else:
        table = pytest.importorskip("pyarrow.parquet").read_table(path)
        assert table.column_names == ["x1", "x2", "class"]
        assert table.column("class").to_pylist() == expected
    again = Arrays(str(path), labels="class", valid_fraction=0.2, test_fraction=0.2)
    assert again.num_classes == 2


def test_a_column_that_is_called_class_keeps_its_name() -> None:
    units = TableUnits(("class", "class_2"), (0.0, 0.0), (1.0, 1.0))
    content = table_content(Path("x.csv"), torch.zeros(1, 2), units, ["a"]).decode()
    assert content.splitlines() == ["class,class_2,class_3", "0.0,0.0,a"]


@pytest.mark.parametrize("suffix", [".safetensors", ".npz"])
def test_files_carry_names(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"draws{suffix}"
    draws = gk.sample(named(), "imh", labels=["rosé", 0], num_samples=8, out=path, **QUICK)
    assert draws.labels.tolist() == [2, 0] * 4
    found = gk.load_draws(path)
    assert found.class_names == draws.class_names == NAMES
    plain = gk.sample(model(), "imh", labels=[2, 0], num_samples=8, **QUICK)
    assert torch.equal(plain.x, draws.x)
    assert plain.class_names is None


@pytest.mark.parametrize(
    ("asked", "expected"), [("weiß", [1, 1, 1]), (["rosé", 0], [2, 0, 2]), (0, [0, 0, 0]), ("all", [0, 1, 2])]
)
def test_names_stand_for_classes(asked: object, expected: list[int]) -> None:
    found = wanted_labels(named(), asked, 3, seed=0)
    assert found is not None
    assert found.tolist() == expected


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ("rose", "there is no class 'rose'; allowed are .*; did you mean rosé"),
        ("Weiß", "there is no class 'Weiß'"),
        ("2", "there is no class '2'"),
        (["rosé", ""], "there is no class ''"),
    ],
)
def test_names_are_not_guessed(asked: object, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        wanted_labels(named(), asked, 3, seed=0)


def test_a_class_called_all_can_be_meant_in_two_ways() -> None:
    one = model()
    one.class_names = ("some", "all", "none")
    with pytest.raises(UsageError, match="'all' can be read in two ways"):
        wanted_labels(one, "all", 3, seed=0)
    assert wanted_labels(one, ["all", "none"], 2, seed=0).tolist() == [1, 2]  # type: ignore[union-attr]


def test_a_class_that_was_not_trained_on_is_not_drawn() -> None:
    one = named()
    one.class_weights.copy_(torch.tensor([0.5, 0.0, 0.5]))
    with pytest.raises(UsageError, match=r"class 1 \(weiß\) has the weight 0"):
        wanted_labels(one, [0, 1], 4, seed=0)
    with pytest.warns(GebmKitWarning, match=r"no draws of class 1 \(weiß\)"):
        assert wanted_labels(one, "all", 4, seed=0).tolist() == [0, 2, 0, 2]  # type: ignore[union-attr]


def test_a_class_alone_is_what_it_is_among_others_but_for_its_chains() -> None:
    alone = gk.sample(model(), "hmc", labels=1, num_samples=60, seed=4, **QUICK)
    again = gk.sample(model(), "hmc", labels=1, num_samples=60, seed=4, **QUICK)
    assert torch.equal(alone.x, again.x)
    other = gk.sample(model(), "hmc", labels=1, num_samples=60, seed=5, **QUICK)
    assert not torch.equal(alone.x, other.x)


def test_diagnostics_are_the_worst_of_the_classes() -> None:
    parts = {
        label: gk.sample(model().given(label), "hmc", num_samples=60, seed=label, **QUICK).diagnostics
        for label in range(K)
    }
    found = merged(parts, 180, 9)
    assert found.rhat_max == max(d.rhat_max for d in parts.values())
    assert found.ess_min == min(d.ess_min for d in parts.values())
    assert found.grad_evals == sum(d.grad_evals for d in parts.values())
    assert found.num_chains == sum(d.num_chains for d in parts.values())
    assert (found.num_samples, found.seed, found.sampler) == (180, 9, "hmc")


USES = {
    "trace": lambda: gk.trace_quality(model(), "mmd", data=torch.zeros(20, 2)),
    "evaluate": lambda: gk.evaluate(model(), data=torch.zeros(20, 2), metrics=["mmd"]),
}


@pytest.mark.parametrize("use", USES)
def test_what_serves_no_classes_says_so(use: str) -> None:
    with pytest.raises(UsageError, match=r"classes|conditional"):
        USES[use]()


def test_a_class_has_as_many_chains_as_the_sampler_needs() -> None:
    sampler = SimpleNamespace(min_chains=20)
    few = share_of(SampleSettings(num_samples=100, num_chains=50), sampler, 10, 100, 0)  # type: ignore[arg-type]
    assert (few.num_chains, few.num_samples) == (20, 20)
    many = share_of(SampleSettings(num_samples=100, num_chains=50), sampler, 80, 100, 0)  # type: ignore[arg-type]
    assert (many.num_chains, many.num_samples) == (40, 80)
