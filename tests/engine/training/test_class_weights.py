"""`data.class_weights`: rows and base draws of each class come in its share, and what can't be weighed is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from gebm_kit.config.build import build_dataset
from gebm_kit.config.load import load_recipe
from gebm_kit.core.errors import GebmKitError, UsageError
from gebm_kit.core.interfaces import Dataset
from gebm_kit.core.progress import GebmKitWarning
from gebm_kit.engine.datasets import batches
from gebm_kit.engine.datasets.batches import Feed
from gebm_kit.engine.datasets.class_rows import InShares, rows_in_shares
from gebm_kit.engine.likelihood.class_log_partitions import store_log_partition
from gebm_kit.engine.run_directory.checkpoint import read_checkpoint, save_checkpoint
from gebm_kit.engine.training.checkpoint_state import counters_of, restore, tensors_of
from gebm_kit.engine.training.class_labels import facts_of
from gebm_kit.engine.training.trainer import Trainer

from ...data.test_datasets import NAMES, make
from ...data.test_idx import fill as fill_idx
from .test_classes import TINY

WEIGHTS = [0, 1, 2, 3, 4, 5, 6, 7, 8, 4]
SHARES = torch.tensor(WEIGHTS, dtype=torch.float64) / sum(WEIGHTS)


def trainer_of(folder: Path, *overrides: str) -> tuple[Trainer, Any]:
    (folder / "tiny.yaml").write_text(TINY)
    recipe = load_recipe(folder / "tiny.yaml", overrides)
    dataset = build_dataset(recipe)
    torch.manual_seed(0)
    return Trainer(recipe, dataset, torch.device("cpu")), dataset


def counted(labels: torch.Tensor) -> torch.Tensor:
    return torch.bincount(labels, minlength=10).double() / len(labels)


@pytest.mark.parametrize("resident", [True, False])
def test_data_and_base_draws_have_the_classes_in_their_shares(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, resident: bool
) -> None:
    if not resident:
        monkeypatch.setattr(batches, "RESIDENT_BYTES", 0)
    trainer, dataset = trainer_of(tmp_path, f"data.class_weights={WEIGHTS}", "train.batch_size=500", "train.noise=0")
    torch.testing.assert_close(trainer.model.class_weights.double(), SHARES, rtol=1e-6, atol=0.0)
    rows, labels = dataset.split("train").first(1199), dataset.labels("train")
    of_data, of_base = [], []
    for _ in range(40):
        batch = trainer.energy_batch()
        assert batch.x is not None
        places = torch.cdist(batch.x.flatten(1), rows.flatten(1)).argmin(1)
        assert torch.equal(rows[places], batch.x)
        assert torch.equal(labels[places], batch.labels)
        of_data.append(batch.labels)
        of_base.append(batch.base_labels)
    # an epoch has each class up to one row; base draws are independent
    torch.testing.assert_close(counted(torch.cat(of_data)), SHARES, rtol=0.0, atol=0.003)  # type: ignore[arg-type]
    torch.testing.assert_close(counted(torch.cat(of_base)), SHARES, rtol=0.0, atol=0.015)  # type: ignore[arg-type]
    assert not bool((torch.cat(of_data) == 0).any() or (torch.cat(of_base) == 0).any())  # type: ignore[arg-type]


def feed(labels: list[int], shares: list[float]) -> Feed:
    class Rows(torch.nn.Identity):
        def __len__(self) -> int:
            return len(labels)

        def first(self, num: int) -> torch.Tensor:
            return torch.arange(num).float()[:, None]

    found = Feed(Rows(), 5, 3, torch.device("cpu"), torch.float32)  # type: ignore[arg-type]
    found.labels = torch.tensor(labels)
    found.weigh(torch.tensor(shares))
    return found


def test_rows_of_a_class_are_repeated_evenly_and_shares_are_right_on_average() -> None:
    found = feed([0] * 7 + [1] * 3 + [2] * 4, [0.1, 0.65, 0.25])
    times = torch.zeros(14)
    for epoch in range(4000):
        order = found._order_of(3, epoch)
        assert len(order) == 14
        here = torch.bincount(order, minlength=14)
        for own in (here[:7], here[7:10], here[10:]):
            assert int(own.max() - own.min()) <= 1
        times += here
    expected = torch.tensor([0.1 / 7] * 7 + [0.65 / 3] * 3 + [0.25 / 4] * 4)
    torch.testing.assert_close(times / times.sum(), expected, rtol=0.15, atol=0.0)  # sd 0.03
    assert torch.equal(found._order_of(3, 5), found._order_of(3, 5))
    assert not torch.equal(found._order_of(3, 5), found._order_of(3, 6))


@pytest.mark.parametrize("shares", [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.1, 0.9, 0.0], [1 / 3, 2 / 3, 0.0]])
def test_a_class_of_weight_zero_is_never_fed(shares: list[float]) -> None:
    found = feed([0] * 7 + [1] * 3, shares)
    for epoch in range(300):
        order = found._order_of(0, epoch)
        assert len(order) == 10
        fed = set(found.labels[order].tolist())  # type: ignore[index]
        assert all(shares[label] > 0 for label in fed)


def test_resumed_equals_never_stopped(tmp_path: Path) -> None:
    straight, dataset = trainer_of(tmp_path, f"data.class_weights={WEIGHTS}")
    straight.initialise()
    for step in range(1, 11):
        straight.cycle()
        if step == 5:
            save_checkpoint(tmp_path, step, tensors_of(straight), counters_of(straight), keep=1)
    torch.manual_seed(0)
    resumed = Trainer(straight.recipe, dataset, torch.device("cpu"))
    restore(resumed, read_checkpoint(tmp_path / "step-0000005"))
    for _ in range(5):
        resumed.cycle()
    expected, found = straight.model.state_dict(), resumed.model.state_dict()
    assert [key for key in expected if "log_partition" not in key and not torch.equal(expected[key], found[key])] == []


def test_the_stored_log_partition_is_that_of_the_weights(tmp_path: Path) -> None:
    trainer, _ = trainer_of(tmp_path, f"data.class_weights={WEIGHTS}")
    with trainer.averaged():
        store_log_partition(trainer.model, 100, torch.Generator().manual_seed(0))
    expected = torch.logsumexp(SHARES.log() + trainer.model.class_log_partition.double(), 0)
    torch.testing.assert_close(trainer.model.log_partition.double(), expected, rtol=1e-5, atol=1e-5)


def test_uniform_and_named_weights(tmp_path: Path) -> None:
    names = [f"n{k}" for k in range(10)]
    uniform, _ = trainer_of(tmp_path, "data.class_weights=uniform")
    word = ", ".join(f"{name}: 3" for name in reversed(names))
    named, _ = trainer_of(tmp_path, f"data.class_names={names}", f"data.class_weights={{{word}}}")
    for trainer in (uniform, named):
        torch.testing.assert_close(trainer.model.class_weights, torch.full((10,), 0.1))
    assert torch.equal(uniform.energy_batch().labels, named.energy_batch().labels)  # type: ignore[arg-type]


def test_without_weights_the_order_is_what_it_was(tmp_path: Path) -> None:
    trainer, _ = trainer_of(tmp_path)
    order = torch.randperm(1199, generator=torch.Generator().manual_seed(0))
    assert torch.equal(trainer.feed._order_of(0, 0), order)


# --- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["data.class_weights=[1,2]"], "data.class_weights has 2 weights, and the data have 10 classes"),
        (["data.class_weights={'3': 1, nine: 1}"], "data.class_weights: there is no class 'nine'"),
        (["data.class_weights={'3': 1}"], "data.class_weights has no weight for '0', '1', '2', '4'"),
        (
            ["data.class_weights=uniform", "base.conditional=false", "energy.conditional=false"],
            "data.class_weights weighs classes, and the model has none: no part of it is conditional",
        ),
        (
            ["data={name: rings, class_weights: uniform}", "base.conditional=false", "energy.conditional=false"],
            r"data.class_weights weighs classes, and the dataset has no labels \(rings\)",
        ),
        (
            ["data={name: rings, labels: true, num_rings: 1}"],
            r"conditional is true, and the dataset has 1 class \(rings\); at least two classes are needed",
        ),
    ],
)
def test_weights_that_do_not_fit(words: list[str], message: str, tmp_path: Path) -> None:
    with pytest.raises(GebmKitError, match=message):
        trainer_of(tmp_path, *words)


def sparse(folder: Path) -> str:
    """Write images whose class 2 of 4 lies in the test part alone."""
    from ...data.test_datasets import write_idx

    for part, num in (("train", 40), ("t10k", 12)):
        write_idx(folder / f"{part}-images-idx3-ubyte", np.random.default_rng(num).integers(0, 256, (num, 4, 4)))
        labels = np.arange(num) % 4
        write_idx(folder / f"{part}-labels-idx1-ubyte", np.where((labels == 2) & (part == "train"), 0, labels))
    return f"data={{name: idx, path: {folder}, class_names: [a, b, c, d]}}"


def test_a_class_without_training_rows(tmp_path: Path) -> None:
    word = sparse(tmp_path)
    with pytest.warns(GebmKitWarning, match=r"no training rows of class 2 \(c\): the model can't learn it"):
        trainer, _ = trainer_of(tmp_path, word)
    assert float(trainer.model.class_weights[2]) == 0
    with pytest.raises(UsageError, match=r"gives weight to class 2 \(c\), and it has no training rows") as caught:
        trainer_of(tmp_path, word, "data.class_weights=uniform")
    assert "weight 0" in caught.value.hint
    trainer, _ = trainer_of(tmp_path, word, "data.class_weights={a: 1, b: 1, c: 0, d: 2}")
    assert trainer.model.class_weights.tolist() == [0.25, 0.25, 0.0, 0.5]


def without_labels(name: str, folder: Path, formats: Any) -> Any:
    """Make a dataset that may have labels so that it has none."""
    target: Any
    if name == "idx":
        fill_idx(folder, labels=False)
    elif name == "arrays":
        np.save(folder / "x.npy", np.zeros((9, 2)) + np.arange(9)[:, None])
        from gebm_kit.data.arrays import Arrays as target

        return target(str(folder / "x.npy"))
    elif name == "image-folder":
        from ...data.test_image_folder import fill

        fill(folder, num=9)
    else:
        return make(name, folder, formats)
    from gebm_kit.core.plugins import installed

    target = installed().registry.get("dataset", name).load()
    return target(str(folder), **({"size": 8} if name == "image-folder" else {}))


@pytest.mark.filterwarnings("ignore::gebm_kit.core.progress.GebmKitWarning")
@pytest.mark.parametrize("name", [name for name in NAMES if name not in ("digits", "cifar10", "imagenet32")])
@pytest.mark.parametrize("part", ["base", "energy", "train.final.energy"])
def test_a_conditional_part_on_data_without_labels_says_how_to_give_them(
    name: str, part: str, tmp_path: Path, formats: Any
) -> None:
    (tmp_path / "of data").mkdir()
    data = without_labels(name, tmp_path / "of data", formats)
    (tmp_path / "tiny.yaml").write_text(TINY)
    path = ", path: somewhere" if name in ("idx", "arrays", "tabular", "image-folder", "celeba", "lsun") else ""
    words = ["base.conditional=false", "energy.conditional=false", f"data={{name: {name}{path}}}"]
    words.append(f"{part}={{name: mlp, conditional: true{', latent_dim: 2' if part == 'base' else ''}}}")
    recipe = load_recipe(tmp_path / "tiny.yaml", words)
    with pytest.raises(UsageError) as caught:
        facts_of(recipe, data)
    assert f"{part} mlp: conditional is true, and the dataset has no labels ({name})" in str(caught.value)
    assert caught.value.hint.startswith(type(data).how_to_label)


# --- scoring in shares -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("counts", "weights", "expected"),
    [
        ([10, 10], [0.5, 0.5], [10, 10]),
        ([10, 10], [0.75, 0.25], [10, 3]),
        ([10, 2], [0.5, 0.5], [2, 2]),
        ([10, 4, 0], [0.25, 0.25, 0.5], [4, 4, 0]),  # a class without rows is left out
        ([10, 4, 3], [1.0, 0.0, 0.0], [10, 0, 0]),
        ([0, 4], [1.0, 0.0], [0, 0]),
    ],
)
def test_as_many_rows_as_the_shares_allow(counts: list[int], weights: list[float], expected: list[int]) -> None:
    labels = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    chosen = rows_in_shares(labels, torch.tensor(weights))
    assert len(chosen.unique()) == len(chosen)
    assert torch.equal(chosen, chosen.sort().values)
    assert torch.bincount(labels[chosen], minlength=len(counts)).tolist() == expected


def test_a_part_in_shares_warns_of_few_rows_and_refuses_none(tmp_path: Path) -> None:
    _, digits = trainer_of(tmp_path)
    in_shares = InShares(digits, SHARES)
    labels = digits.labels("test")
    split = in_shares.split("test")
    chosen = rows_in_shares(labels, SHARES)
    assert torch.equal(split.first(999), digits.split("test").batch(chosen))
    torch.testing.assert_close(counted(labels[chosen]), SHARES, rtol=0.0, atol=1 / len(chosen))
    word = sparse(tmp_path)
    _, other = trainer_of(tmp_path, word, "data.class_weights=[1,1,0,1]")
    with pytest.raises(UsageError, match="the train part has no row of a class whose weight is above 0"):
        InShares(other, torch.tensor([0.0, 0.0, 1.0, 0.0])).split("train")
    few = InShares(_Few(digits), torch.tensor([0.5, 0.5] + [0.0] * 8))  # type: ignore[arg-type]
    with pytest.warns(GebmKitWarning, match=r"only 4 of the 399 rows of the test part"):
        few.split("test")


class _Few(Dataset):
    """Digits with class 1 in 2 rows of each part alone."""

    def __init__(self, digits: Any) -> None:
        self._digits, self.data_shape, self.value_range = digits, digits.data_shape, digits.value_range
        self.num_classes = 10

    def split(self, name: str) -> Any:
        return self._digits.split(name)

    def labels(self, name: str) -> torch.Tensor:
        labels = self._digits.labels(name).clone()
        labels[labels < 2] = 2
        labels[:2], labels[2:300] = 1, 0
        return labels
