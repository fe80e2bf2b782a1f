"""`gk.fit`: own modules on own data of every kind, resumed to the bit, opened again, and one sentence for each mistake."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset as TorchDataset, IterableDataset, TensorDataset

import gebm_kit as gk
from gebm_kit.config.supplied_parts import InitialWeights
from gebm_kit.core.errors import DataError, GebmKitError, Interrupted, PluginError, RecipeError, UsageError
from gebm_kit.core.interfaces import Base, Dataset, Energy, FeatureMap, Logger
from gebm_kit.core.progress import GebmKitWarning, Progress
from gebm_kit.engine.datasets.given import dataset_of, source_of
from gebm_kit.losses.kale import Kale
from gebm_kit.metrics.frechet import Frechet
from gebm_kit.metrics.mmd import Mmd
from gebm_kit.penalties.gradient import GradientPenalty
from gebm_kit.samplers.mala import Mala

pytestmark = [
    pytest.mark.filterwarnings("ignore::gebm_kit.core.progress.GebmKitWarning"),
    pytest.mark.usefixtures("quick_evaluation"),
]

ROWS = torch.randn(300, 2, generator=torch.Generator().manual_seed(3)) @ torch.tensor([[1.0, 0.5], [0.0, 0.3]]) + 3.0
CLASSES = (ROWS[:, 0] > 3).long()
QUICK: dict[str, Any] = {
    "steps": 4,
    "sampler": "mala",
    "train": {"batch_size": 32, "energy_steps": 2, "log_every": 2, "checkpoint_every": 2},
    "sample": {"num_samples": 40, "num_chains": 20, "warmup": 4, "steps": 4, "thin": 2},
    "eval": {"metrics": ["mmd"], "num_samples": 40, "num_sets": 2},
}


class Generator(nn.Module):
    """A plain module that states its latent size."""

    latent_dim = 3

    def __init__(self, width: int = 2) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(3, 8), nn.SiLU(), nn.Linear(8, width))

    def forward(self, z: Tensor) -> Tensor:
        return self.layers(z)


class OfClass(nn.Module):
    """A module that takes labels."""

    def __init__(self, inputs: int, outputs: int, num_classes: int = 2) -> None:
        super().__init__()
        self.table, self.layer = nn.Embedding(num_classes, 4), nn.Linear(inputs + 4, outputs)

    def forward(self, rows: Tensor, labels: Tensor) -> Tensor:
        return self.layer(torch.cat([rows, self.table(labels)], 1))


def parts(width: int = 2, seed: int = 0) -> tuple[nn.Module, nn.Module]:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Generator(width), nn.Sequential(nn.Linear(width, 8), nn.SiLU(), nn.Linear(8, 1))


def fit(data: Any = ROWS, *, out: Path, width: int = 2, **options: Any) -> Any:
    base, energy = options.pop("base", None), options.pop("energy", None)
    made = parts(width)
    return gk.fit(
        made[0] if base is None else base, made[1] if energy is None else energy, data, out=out, **{**QUICK, **options}
    )


def sizes(dataset: Dataset) -> list[int]:
    return [len(dataset.split(name)) for name in ("train", "valid", "test")]


def weights(*modules: nn.Module) -> list[Tensor]:
    return [tensor.clone() for module in modules for tensor in module.state_dict().values()]


def same(one: list[Tensor], other: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


# --- the run ---------------------------------------------------------------------------------------------------------


def test_three_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    base, energy = parts()
    before = weights(base, energy)
    run = gk.fit(base, energy, ROWS, **QUICK)
    assert run.path.parent == Path("runs/fit")
    assert (run.state, run.step) == ("finished", 4)
    assert run.evaluation is not None
    assert "mmd" in run.evaluation["metrics"]["gebm"]
    assert run.metrics()
    assert run.model.base.module is base
    assert run.model.energy.module is energy
    assert not same(weights(base, energy), before), "the caller's modules are trained in place"
    draws = gk.sample(run, num_samples=20, num_chains=10, warmup=2, steps=2)
    assert draws.x.shape == (20, 2)
    assert gk.evaluate(run, metrics=["mmd"], num_samples=20, num_sets=2).metrics["gebm"]["mmd"].n == 2


def test_one_seed_gives_the_same_weights_and_another_does_not(tmp_path: Path) -> None:
    found = []
    for number, seed in enumerate((1, 1, 2)):
        base, energy = parts()
        fit(out=tmp_path / str(number), base=base, energy=energy, seed=seed)
        found.append(weights(base, energy))
    assert same(found[0], found[1])
    assert not same(found[0], found[2])


def test_own_modules_train_as_their_registered_likes(tmp_path: Path) -> None:
    """The same weights under another name: a Base and an Energy of the kit's classes give the same numbers."""

    class Own(Base):
        latent_dim, data_shape = 3, (2,)

        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, z: Tensor) -> Tensor:
            return self.inner(z)

    class OwnEnergy(Energy):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x).squeeze(1)

    plain, wrapped = parts(), parts()
    fit(out=tmp_path / "plain", base=plain[0], energy=plain[1])
    fit(out=tmp_path / "wrapped", base=Own(wrapped[0]), energy=OwnEnergy(wrapped[1]))
    assert same(weights(*plain), weights(*wrapped))


def test_a_run_that_was_stopped_is_resumed_to_the_bit(tmp_path: Path) -> None:
    whole = parts()
    fit(out=tmp_path / "whole", base=whole[0], energy=whole[1], steps=8)

    def stop(progress: Progress) -> None:
        if progress.stage == "train" and progress.step >= 4:
            os.kill(os.getpid(), 2)

    with pytest.raises(Interrupted) as stopped:
        fit(out=tmp_path / "again", steps=8, on_progress=stop)
    assert "gk.fit(..., out=" in stopped.value.hint
    assert "resume=True" in stopped.value.hint
    others = parts(seed=9)  # of the same shapes: the checkpoint has the weights
    run = fit(out=tmp_path / "again", base=others[0], energy=others[1], steps=8, resume=True)
    assert run.step == 8
    assert same(weights(*whole), weights(*others))


def test_a_finished_run_gives_its_weights_to_the_modules(tmp_path: Path) -> None:
    first, second = parts(), parts(seed=5)
    fit(out=tmp_path / "run", base=first[0], energy=first[1])
    fit(out=tmp_path / "run", base=second[0], energy=second[1], resume=True)
    assert same(weights(*first), weights(*second))


def test_a_run_is_not_resumed_on_other_data_or_with_another_module(tmp_path: Path) -> None:
    fit(out=tmp_path / "run")
    with pytest.raises(UsageError, match=r"another recipe:\n  data.sha256"):
        fit(ROWS + 1, out=tmp_path / "run", resume=True, steps=6)
    with pytest.raises(UsageError, match="base.class"):
        fit(out=tmp_path / "run", resume=True, steps=6, base=nn.Linear(3, 2))


def test_going_back_to_the_start_brings_the_initial_weights_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Bursting(nn.Module):
        """An energy that is not finite in some evaluations of training, once it is told so."""

        def __init__(self) -> None:
            super().__init__()
            self.layer, self.left = nn.Linear(2, 1), 0

        def forward(self, x: Tensor) -> Tensor:
            values = self.layer(x)
            if self.training and self.left:
                self.left -= 1
                return values * float("inf")
            return values

    energy = Bursting()
    before, seen = weights(energy), []

    def watch(progress: Progress) -> None:
        if progress.stage == "train":
            seen.append(progress.step)
            if seen == [1, 2]:
                energy.left = 6

    original = InitialWeights.restore

    def restored(self: InitialWeights) -> None:
        assert not same(weights(energy), before)
        original(self)
        assert same(weights(energy), before)
        energy.left = 0

    train = {
        "batch_size": 64,
        "checkpoint_every": 100,
        "on_non_finite": {"limit": 2},
        "log_every": 1,
        "energy_steps": 2,
    }
    monkeypatch.setattr(InitialWeights, "restore", restored)
    with pytest.warns(GebmKitWarning, match="training goes back from step"):
        run = fit(out=tmp_path / "run", energy=energy, train=train, on_progress=watch)
    assert run.step == 4


# --- opening a run again ---------------------------------------------------------------------------------------------


def test_load_run_needs_the_modules_and_then_draws_the_same(tmp_path: Path) -> None:
    run = fit(out=tmp_path / "run")
    options = {"num_samples": 20, "num_chains": 10, "warmup": 2, "steps": 2}
    draws = gk.sample(run, **options).x
    with pytest.raises(UsageError, match=r"base \(.*Generator\), energy \(.*Sequential\)") as refused:
        gk.load_run(run.path)
    assert "gk.load_run(path, base=..., energy=...," in refused.value.hint
    with pytest.raises(UsageError, match="Python objects"):
        gk.sample(run.path)
    with pytest.raises(UsageError, match="can't rebuild: energy"):
        gk.load_run(run.path, base=parts()[0])
    base, energy = parts(seed=4)
    again = gk.load_run(run.path, base=base, energy=energy)
    assert torch.equal(gk.sample(again, **options).x, draws)
    with pytest.raises(UsageError, match=r"can't rebuild: data \(torch.Tensor\)"):
        _ = again.dataset
    with pytest.raises(UsageError, match=r"not the data .* with other values"):
        gk.load_run(run.path, base=base, energy=energy, data=ROWS * 2)
    with pytest.raises(UsageError, match=r"not the data .* these have \[70, 10, 20\]"):
        gk.load_run(run.path, base=base, energy=energy, data=ROWS[:100])
    whole = gk.load_run(run.path, base=base, energy=energy, data=ROWS)
    assert sizes(whole.dataset) == sizes(run.dataset)
    assert gk.evaluate(whole, metrics=["mmd"], num_samples=20, num_sets=2).metrics["gebm"]


def test_load_run_refuses_objects_that_the_run_builds_itself(tmp_path: Path) -> None:
    run = fit("eight-gaussians", out=tmp_path / "run", base="mlp", energy="mlp")
    assert gk.load_run(run.path).model.latent_dim == run.model.latent_dim  # such a run needs nothing
    with pytest.raises(UsageError, match="the run's base is 'mlp', which it builds itself"):
        gk.load_run(run.path, base=parts()[0])
    own = fit(out=tmp_path / "own")
    with pytest.raises(UsageError, match=r"base must be a torch.nn.Module, .* got str"):
        gk.load_run(own.path, base="mlp", energy=parts()[1])
    with pytest.raises(GebmKitError, match="does not fit"):
        _ = gk.load_run(own.path, base=nn.Linear(3, 2), energy=parts()[1]).model


def test_the_energy_of_the_final_phase(tmp_path: Path) -> None:
    final, other = parts(seed=1)[1], parts(seed=2)[1]
    run = fit(out=tmp_path / "run", train={**QUICK["train"], "final": {"steps": 2, "energy": final}})
    assert run.step == 6
    assert run.model.energy.module is final
    base, energy = parts()
    with pytest.raises(UsageError, match=r"can't rebuild: final_energy \(.*Sequential\)"):
        gk.load_run(run.path, base=base, energy=energy)
    assert gk.load_run(run.path, base=base, energy=energy, final_energy=other).model.energy.module is other
    assert same(weights(final), weights(other))
    plain = fit(out=tmp_path / "plain")
    with pytest.raises(UsageError, match="the run's final_energy is nothing"):
        gk.load_run(plain.path, base=base, energy=energy, final_energy=other)


def test_the_newest_unfinished_run_is_resumed_without_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)

    def stop(progress: Progress) -> None:
        os.kill(os.getpid(), 2)

    with pytest.raises(Interrupted):
        gk.fit(*parts(), ROWS, **QUICK, on_progress=stop)
    run = gk.fit(*parts(), ROWS, **QUICK, resume=True)
    assert run.step == 4
    assert len(list((tmp_path / "runs" / "fit").iterdir())) == 1


def test_load_run_of_a_table_reads_it_in_the_same_way(tmp_path: Path) -> None:
    frame = pd.DataFrame({"a": ROWS[:, 0], "b": ROWS[:, 1], "kind": np.where(CLASSES == 1, "x", "y")})
    run = fit(frame, out=tmp_path / "run", labels="kind", reading={"standardise": False})
    again = gk.load_run(run.path, base=parts()[0], energy=parts()[1], data=frame)
    for part in ("train", "valid", "test"):
        assert torch.equal(again.dataset.split(part).first(9), run.dataset.split(part).first(9))
    assert again.dataset.class_names == ("x", "y")


@pytest.mark.parametrize("command", ["sample", "eval", "train"])
def test_the_command_line_names_the_way_out(command: str, tmp_path: Path, capsys: Any) -> None:
    from gebm_kit.cli.app import main

    run = fit(out=tmp_path / "run")
    words = (
        [str(run.path)] if command != "train" else [str(run.path / "resolved.yaml"), "--out", str(run.path), "--resume"]
    )
    assert main([command, *words]) == 2
    shown = capsys.readouterr().err
    assert "Python objects" in " ".join(shown.split())
    assert "gk.load_run(path, base=..., energy=..." in " ".join(shown.split())


def test_runs_are_listed_and_nothing_is_pickled(tmp_path: Path, capsys: Any) -> None:
    from gebm_kit.cli.app import main

    fit(out=tmp_path / "runs" / "fit" / "one")
    assert main(["runs", str(tmp_path / "runs")]) == 0
    assert "fit" in capsys.readouterr().out
    suffixes = {file.suffix for file in tmp_path.rglob("*") if file.is_file()}
    assert suffixes <= {".yaml", ".txt", ".json", ".jsonl", ".safetensors", ".png", ".lock", ""}


# --- data ------------------------------------------------------------------------------------------------------------


class Items(TorchDataset):
    """A map-style dataset of pairs."""

    def __len__(self) -> int:
        return len(ROWS)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return ROWS[index], int(CLASSES[index])


class Stream(IterableDataset):
    """Rows, one after another."""

    def __iter__(self) -> Iterator[Tensor]:
        return iter(ROWS)


FRAME = pd.DataFrame({"height": ROWS[:, 0].numpy(), "weight": ROWS[:, 1].numpy()})


@pytest.mark.parametrize(
    ("data", "classes"),
    [
        (ROWS, None),
        (ROWS.double().numpy(), None),
        ((ROWS, CLASSES), 2),
        ((ROWS.numpy(), ["b" if label else "a" for label in CLASSES]), 2),
        (TensorDataset(ROWS), None),
        (TensorDataset(ROWS, CLASSES), 2),
        (TensorDataset(ROWS, ROWS[:, 0]), None),
        (Items(), 2),
        (DataLoader(Items(), batch_size=7, shuffle=True), 2),
        (DataLoader(Stream(), batch_size=7), None),
        (Stream(), None),
    ],
    ids=[
        "tensor",
        "ndarray",
        "pair",
        "texts",
        "tensors",
        "labelled",
        "targets",
        "items",
        "loader",
        "streamed",
        "stream",
    ],
)
def test_rows_in_memory_are_kept_as_they_are(data: Any, classes: int | None, tmp_path: Path) -> None:
    dataset = fit(data, out=tmp_path / "run").dataset
    assert sizes(dataset) == [210, 30, 60]
    assert getattr(dataset, "num_classes", None) == classes
    known = {tuple(row) for row in ROWS.tolist()}
    for part in ("train", "valid", "test"):
        assert {tuple(row) for row in dataset.split(part).first(300).tolist()} <= known


def test_batches_of_an_iterable_are_read_once(tmp_path: Path) -> None:
    batches = (ROWS[start : start + 50] for start in range(0, 300, 50))
    assert sizes(fit(batches, out=tmp_path / "run").dataset) == [210, 30, 60]
    assert next(batches, None) is None


def test_an_iterable_without_end_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gebm_kit.engine.datasets.given_rows.MOST_BYTES", 2**20)

    def forever() -> Iterator[Tensor]:
        while True:
            yield ROWS

    with pytest.raises(DataError, match="holds more than .* GiB of rows, which are read into memory"):
        fit(forever(), out=tmp_path / "run")


def test_a_data_frame_is_standardised_and_keeps_its_names(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="gebm_kit"):
        run = fit(FRAME, out=tmp_path / "run")
    (said,) = [record.message for record in caplog.records if record.message.startswith("data:")]
    assert "standardised" in said
    assert "columns: height, weight" in said
    train = run.dataset.split("train").first(300)
    assert torch.allclose(train.mean(0), torch.zeros(2), atol=1e-5)
    assert run.dataset.units.columns == ("height", "weight")
    draws = gk.sample(run, num_samples=20, num_chains=10, warmup=2, steps=2)
    assert draws.units is not None
    assert draws.units.columns == ("height", "weight")


def test_columns_of_a_frame_may_be_labels_nullable_or_left_as_they_are(tmp_path: Path) -> None:
    frame = FRAME.assign(kind=np.where(CLASSES == 1, "tall", "short"), count=pd.array(range(300), dtype="Int64"))
    dataset = fit(frame, out=tmp_path / "run", labels="kind", width=3, reading={"standardise": False}).dataset
    assert dataset.class_names == ("short", "tall")
    assert dataset.units.columns == ("height", "weight", "count")
    assert dataset.split("train").first(300)[:, 2].max() > 200


def test_a_missing_value_is_refused_or_dropped(tmp_path: Path) -> None:
    frame = FRAME.copy()
    frame.loc[7, "weight"] = np.nan
    with pytest.raises(DataError, match="row 8, column 'weight' is missing"):
        fit(frame, out=tmp_path / "run")
    assert sum(sizes(fit(frame, out=tmp_path / "run", reading={"missing": "drop"}).dataset)) == 299


@pytest.mark.parametrize("name", ["f.csv", "f.parquet", "f.npy", "f.npz"])
def test_paths_are_read_by_the_datasets_of_the_kit(name: str, tmp_path: Path) -> None:
    file = tmp_path / name
    save: dict[str, Callable[[], Any]] = {
        "f.csv": lambda: FRAME.to_csv(file, index=False),
        "f.parquet": lambda: FRAME.to_parquet(file),
        "f.npy": lambda: np.save(file, ROWS.numpy()),
        "f.npz": lambda: np.savez(file, x=ROWS.numpy()),
    }
    save[name]()
    run = fit(file if name == "f.csv" else str(file), out=tmp_path / "run")
    table = name in ("f.csv", "f.parquet")
    assert run.recipe.data.name == ("tabular" if table else "arrays")
    assert sizes(run.dataset) == ([243, 27, 30] if table else [210, 30, 60])
    other = fit(str(file), out=tmp_path / "other", reading={"standardise": True, "seed": 3})
    assert torch.allclose(other.dataset.split("train").first(300).mean(0), torch.zeros(2), atol=1e-5)


@pytest.mark.parametrize("reading", [None, {"standardise": False}, {"test_fraction": 0.3}])
def test_a_file_of_a_table_is_read_as_a_data_frame_is(reading: dict[str, Any] | None, tmp_path: Path) -> None:
    FRAME.to_csv(tmp_path / "f.csv", index=False)
    of_file, of_frame = (
        dataset_of(source_of(data, reading=reading)) for data in (tmp_path / "f.csv", pd.read_csv(tmp_path / "f.csv"))
    )
    assert of_file.units == of_frame.units
    for part in ("train", "valid", "test"):
        assert torch.equal(of_file.split(part).first(300), of_frame.split(part).first(300))


def test_held_out_files_of_tables_have_the_scale_and_the_grid_of_data_frames(tmp_path: Path) -> None:
    rounded = FRAME.astype(float).round(2)
    frames = {"data": rounded[:200], "valid": rounded[200:250], "test": rounded[250:]}
    files = {name: tmp_path / f"{name}.csv" for name in frames}
    for name, file in files.items():
        frames[name][["weight", "height"]].to_csv(file, index=False)  # in another order
    expected = dataset_of(source_of(**{name: pd.read_csv(file) for name, file in files.items()}))
    for given in (files, {**frames, "test": str(files["test"])}, {**files, "data": frames["data"]}):
        found = dataset_of(source_of(**given))
        assert sorted(found.units.columns) == sorted(expected.units.columns)
        order = [found.units.columns.index(name) for name in expected.units.columns]
        for part in ("train", "valid", "test"):
            one, other = (x.measured(x.split(part).first(300)) for x in (found, expected))
            assert torch.equal(one[:, order], other)


def test_parameters_of_arrays_alone_read_a_table_without_a_scale(tmp_path: Path) -> None:
    FRAME.to_csv(tmp_path / "f.csv", index=False)
    source = source_of(tmp_path / "f.csv", reading={"value_range": [0, 1000]})
    assert source.node is not None
    assert source.node["name"] == "arrays"
    with pytest.raises(UsageError, match=r"reading\['levels'\]: dataset 'arrays' has no parameter 'levels'"):
        source_of(tmp_path / "f.csv", reading={"levels": 3})


def test_a_folder_of_images(tmp_path: Path) -> None:
    from PIL import Image

    (tmp_path / "images").mkdir()
    numbers = np.random.default_rng(0).integers(0, 256, (20, 8, 8, 3), dtype=np.uint8)
    for index, pixels in enumerate(numbers):
        Image.fromarray(pixels).save(tmp_path / "images" / f"{index}.png")
    base = nn.Sequential(nn.Linear(4, 192), nn.Tanh(), nn.Unflatten(1, (3, 8, 8)))
    energy = nn.Sequential(nn.Flatten(), nn.Linear(192, 1))
    run = fit(
        tmp_path / "images",
        out=tmp_path / "run",
        base=base,
        energy=energy,
        reading={"size": 8},
        train={"batch_size": 8},
    )
    assert run.recipe.data.name == "image-folder"
    assert run.dataset.data_shape == (3, 8, 8)
    assert run.recipe.base.parameters["latent_dim"] == 4


@pytest.mark.parametrize("data", ["eight-gaussians", {"name": "eight-gaussians", "num_train": 200}])
def test_names_and_nodes(data: Any, tmp_path: Path) -> None:
    run = fit(data, out=tmp_path / "run", base={"name": "mlp", "hidden": [8]}, energy="mlp", latent_dim=3)
    assert (run.recipe.data.name, run.model.latent_dim) == ("eight-gaussians", 3)
    assert not run.recipe.parts
    again = gk.train(run.path / "resolved.yaml", out=tmp_path / "again")  # a recipe rebuilds all of it
    assert same(weights(again.model), weights(run.model))


def test_a_dataset_of_the_kit(tmp_path: Path) -> None:
    given = fit("eight-gaussians", out=tmp_path / "name").dataset
    run = fit(given, out=tmp_path / "object")
    assert run.dataset is given
    again = gk.load_run(run.path, base=parts()[0], energy=parts()[1], data=given)
    assert again.dataset is given


def test_bytes_of_images_are_scaled_and_doubtful_numbers_refused(tmp_path: Path) -> None:
    images = torch.randint(0, 256, (60, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    made: dict[str, Any] = {
        "base": nn.Sequential(nn.Linear(4, 64), nn.Tanh(), nn.Unflatten(1, (1, 8, 8))),
        "energy": nn.Sequential(nn.Flatten(), nn.Linear(64, 1)),
        "train": {"batch_size": 8},
    }
    dataset = fit(images, out=tmp_path / "bytes", **made).dataset
    assert (dataset.data_shape, dataset.value_range) == ((1, 8, 8), (-1.0, 1.0))
    row = dataset.split("train").first(1)
    assert any(torch.equal(row[0, 0], image / 127.5 - 1) for image in images)
    with pytest.raises(DataError, match="can be read in two ways") as refused:
        fit(images.float(), out=tmp_path / "doubt", **made)
    assert "reading={'pixels': 'keep'}" in refused.value.hint
    kept = fit(images.float(), out=tmp_path / "kept", reading={"pixels": "keep"}, **made).dataset
    assert float(kept.split("train").first(60).max()) > 200


@pytest.mark.parametrize("kind", ["rows", "frame", "path", "mixed"])
def test_held_out_parts_of_ones_own(kind: str, tmp_path: Path) -> None:
    valid, test = ROWS[:40] + 0.5, ROWS[:60] - 0.5
    frames = [pd.DataFrame({"weight": rows[:, 1], "height": rows[:, 0]}) for rows in (valid, test)]
    np.save(tmp_path / "valid.npy", valid.numpy())
    np.save(tmp_path / "train.npy", ROWS.numpy())
    data, held_out = {
        "rows": (ROWS, (valid, test.numpy())),
        "frame": (FRAME, tuple(frames)),
        "path": (str(tmp_path / "train.npy"), (str(tmp_path / "valid.npy"), test)),
        "mixed": (ROWS, (str(tmp_path / "valid.npy"), test)),
    }[kind]
    dataset = fit(data, out=tmp_path / "run", valid=held_out[0], test=held_out[1]).dataset
    assert sizes(dataset) == [300, 40, 60]
    rows = dataset.split("valid").first(40)
    if kind == "frame":
        rows = dataset.units.measured(rows).float()
    assert torch.allclose(rows.sort(0).values, valid.sort(0).values, atol=1e-4)


def test_one_held_out_part_and_the_other_split_off(tmp_path: Path) -> None:
    assert sizes(fit(ROWS, out=tmp_path / "valid", valid=ROWS[:40] + 0.5).dataset) == [240, 40, 60]
    assert sizes(fit(ROWS, out=tmp_path / "test", test=ROWS[:40] + 0.5).dataset) == [270, 30, 40]


# --- parts -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("base", "size"),
    [
        (nn.Linear(5, 2), 5),
        (nn.Sequential(nn.BatchNorm1d(6), nn.Flatten(), nn.Linear(6, 2)), 6),
        (nn.Sequential(nn.Identity(), nn.Linear(4, 2)), 4),
    ],
)
def test_the_latent_size_is_found(base: nn.Module, size: int, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    before = weights(base)
    with caplog.at_level(logging.INFO, logger="gebm_kit"):
        run = fit(out=tmp_path / "run", base=base, train={"part": "energy"})
    assert run.model.latent_dim == size
    assert any(f"latent_dim={size}" in record.message for record in caplog.records)
    assert same(before, weights(base)), "a trial leaves no trace"


def test_values_of_shape_b_1_are_noted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="gebm_kit"):
        fit(out=tmp_path / "run")
    assert any("returns shape (B, 1)" in record.message for record in caplog.records)


def test_capabilities_of_a_plain_module_are_the_bases(tmp_path: Path) -> None:
    class Shift(nn.Module):
        latent_dim = 2

        def __init__(self) -> None:
            super().__init__()
            self.shift = nn.Parameter(torch.zeros(2))

        def forward(self, z: Tensor) -> Tensor:
            return z + self.shift

        def log_prob(self, x: Tensor) -> Tensor:
            return torch.distributions.Normal(self.shift, 1.0).log_prob(x).sum(1)

        def pretraining_loss(self, x: Tensor) -> Tensor:
            return -self.log_prob(x).mean()

        def encode(self, x: Tensor) -> Tensor:
            return x - self.shift

    train = {"part": "base-then-energy", "pretrain": {"steps": 200, "optimizer": {"lr": 0.05}}, "batch_size": 64}
    run = fit(out=tmp_path / "run", base=Shift(), train=train)
    assert torch.allclose(run.model.base.module.shift, ROWS.mean(0), atol=0.3)
    assert gk.log_density(run, ROWS[:5]).gebm.shape == (5,)
    assert gk.sample(run, start=ROWS[:10], num_samples=10, num_chains=10, warmup=2, steps=2).x.shape == (10, 2)


def test_modules_that_take_labels_have_classes(tmp_path: Path) -> None:
    run = fit((ROWS, CLASSES), out=tmp_path / "run", base=OfClass(3, 2), energy=OfClass(2, 1), latent_dim=3)
    assert run.model.num_classes == 2
    assert gk.sample(run, labels=1, num_samples=10, num_chains=10, warmup=2, steps=2).labels.tolist() == [1] * 10
    again = gk.load_run(run.path, base=OfClass(3, 2), energy=OfClass(2, 1))
    assert torch.equal(again.model.class_weights, run.model.class_weights)
    with pytest.raises(UsageError, match="takes labels as its second argument, and the data have none"):
        fit(ROWS, out=tmp_path / "none", base=OfClass(3, 2), latent_dim=3)


def test_an_evaluation_reads_the_classes_of_a_data_frame(tmp_path: Path) -> None:
    names = np.array(["low", "high"])
    frame = FRAME.assign(kind=names[CLASSES.numpy()])
    run = fit(frame, labels="kind", out=tmp_path / "run", base=OfClass(3, 2), energy=OfClass(2, 1), latent_dim=3)
    few: dict[str, Any] = {"metrics": ["mmd"], "num_samples": 40, "num_sets": 2, "log_partition": "importance-sampling"}
    first = gk.evaluate(run, data=frame[:100], **few).as_dict()
    assert set(first["classes"]) == {"0", "1"}
    rows, kinds = FRAME[:100], frame["kind"][:100]
    renamed = rows.assign(sort=kinds)
    for given in ({"data": (rows, kinds)}, {"data": rows, "labels": kinds}, {"data": renamed, "labels": "sort"}):
        assert gk.evaluate(run, **given, **few).as_dict()["classes"] == first["classes"]
    indices = (rows, (kinds == "low").astype(int).to_numpy())  # sorted names: high is 0
    assert gk.evaluate(run, data=indices, **few).as_dict()["classes"] == first["classes"]
    mistakes: list[tuple[dict[str, Any], str]] = [
        ({"data": rows}, "has no labels"),
        ({"data": rows, "labels": "kid"}, "names a column, and data has no such column"),
        ({"data": rows.to_numpy(), "labels": "kind"}, "is not a data frame"),
        ({"data": rows, "labels": kinds[:7]}, "7"),
        ({"data": (rows, kinds), "labels": kinds}, "give one of them"),
        ({"data": (rows, kinds, kinds)}, r"a pair \(rows, labels\)"),
        ({"data": rows.assign(kind="middle")}, "there is no class 'middle'"),
        ({"labels": kinds}, "leave labels out"),
    ]
    for wrong, message in mistakes:
        with pytest.raises(UsageError, match=message):
            gk.evaluate(run, **wrong, **few)


def test_names_of_classes(tmp_path: Path) -> None:
    run = fit((ROWS, CLASSES), out=tmp_path / "run", energy=OfClass(2, 1), reading={"class_names": ["low", "high"]})
    assert run.model.class_names == ("low", "high")


def test_double_precision_is_kept(tmp_path: Path) -> None:
    base, energy = parts()
    run = fit(out=tmp_path / "run", base=base.double(), energy=energy.double())
    assert run.recipe.precision == "float64"
    assert run.model.dtype == torch.float64


class Pixels(FeatureMap):
    """Rows as they are."""

    checksum = "mine"

    def fit(self, dataset: Dataset, device: torch.device) -> None:
        return

    def __call__(self, x: Tensor) -> Tensor:
        return x.flatten(1)


class Kept(Logger):
    """A logger that keeps what it gets."""

    def __init__(self) -> None:
        self.rows: list[Any] = []

    def log(self, step: int, scalars: Any) -> None:
        self.rows.append((step, dict(scalars)))

    def log_config(self, config: Any) -> None:
        self.config = config

    def log_image(self, step: int, name: str, path: Path) -> None:
        return

    def close(self) -> None:
        return


def test_components_as_objects(tmp_path: Path) -> None:
    logger = Kept()
    base, energy = parts()
    run = fit(
        out=tmp_path / "run",
        base=base,
        energy=energy,
        loss=Kale(),
        sampler=Mala(step_size=0.3),
        train={**QUICK["train"], "penalty": GradientPenalty(weight=2.0)},
        eval={**QUICK["eval"], "metrics": [Mmd(), Frechet(features=Pixels())]},
        optim={"energy": torch.optim.SGD(energy.parameters(), lr=1e-3, momentum=0.9), "base": "adamw"},
        loggers=logger,
    )
    assert run.evaluation is not None
    assert {"mmd", "frechet"} <= set(run.evaluation["metrics"]["gebm"])
    optim = run.recipe.optim
    assert (optim.energy.name, optim.energy.lr, optim.energy.beta1, optim.base.name) == ("sgd", 1e-3, 0.9, "adamw")
    assert logger.rows
    assert logger.config["loss"]["name"] == "python-object"
    assert gk.sample(run, num_samples=10, num_chains=10, warmup=2, steps=2).x.shape == (10, 2)
    again = gk.load_run(run.path, base=base, energy=energy)
    with pytest.raises(UsageError, match=r"can't rebuild: sampler \(gebm_kit.samplers.mala.Mala\)"):
        gk.sample(again, num_samples=10)
    assert gk.sample(again, "hmc", num_samples=10, num_chains=10, warmup=2, steps=2).x.shape == (10, 2)
    again = gk.load_run(run.path, base=base, energy=energy, sampler=Mala())
    assert gk.sample(again, num_samples=10, num_chains=10, warmup=2, steps=2).x.shape == (10, 2)


def test_components_as_nodes(tmp_path: Path) -> None:
    run = fit(
        out=tmp_path / "run",
        loss={"name": "logistic"},
        sampler={"name": "mala", "step_size": 0.3},
        eval={**QUICK["eval"], "metrics": [{"name": "mmd"}, "sliced-wasserstein"]},
        optim="sgd",
        overrides=["train.batch_size=16"],
    )
    assert run.recipe.sampler.parameters["step_size"] == 0.3
    assert (run.recipe.optim.base.name, run.recipe.train.batch_size) == ("sgd", 16)


def test_nodes_names_and_objects_alike_after_training(tmp_path: Path) -> None:
    run = fit(out=tmp_path / "run")
    chains = {"num_samples": 10, "num_chains": 10, "warmup": 0, "steps": 4, "seed": 1}
    by_node = gk.sample(run, {"name": "mala", "step_size": 0.2}, **chains)
    assert torch.equal(by_node.x, gk.sample(run, Mala(step_size=0.2), **chains).x)
    rows = {"num_samples": 20, "num_sets": 2, "seed": 1, "sampler": {"name": "mala"}}
    tables = [gk.evaluate(run, metrics=[one], **rows) for one in ("mmd", {"name": "mmd"}, Mmd())]
    assert len({table.metrics["gebm"]["mmd"].value for table in tables}) == 1
    traced = gk.trace_quality(
        run, {"name": "mmd"}, sampler={"name": "mala"}, num_samples=20, num_sets=2, steps=2, warmup=0
    )
    assert traced.metric == "mmd"
    with pytest.raises(RecipeError, match="has no such parameter; did you mean step_size"):
        gk.sample(run, {"name": "mala", "step_sise": 1})
    with pytest.raises(UsageError, match="the class Mala"):
        gk.sample(run, Mala)
    with pytest.raises(UsageError, match="a node has the name of a metric"):
        gk.evaluate(run, metrics=[{"features": "pixels"}])


# --- one sentence for each mistake -----------------------------------------------------------------------------------


class Failing(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        raise ValueError("kaboom")


class NotFinite(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * float("nan")


class Random(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + torch.randn(2)


class Narrow(nn.Module):
    """A module that takes codes of any size."""

    def forward(self, z: Tensor) -> Tensor:
        return z[:, :1].expand(-1, 2)


MISTAKES: dict[str, tuple[dict[str, Any], type[GebmKitError], str]] = {
    "a class as base": ({"base": nn.Linear}, UsageError, "the base is the class Linear"),
    "a function as base": ({"base": torch.tanh}, UsageError, "the base must be a torch.nn.Module"),
    "a misspelt base": ({"base": "mlpp"}, RecipeError, "did you mean mlp"),
    "a base of another shape": ({"base": nn.Linear(3, 5)}, UsageError, r"returns shape \(2, 5\) for 2 codes"),
    "a base that fails": ({"base": Failing(2, 2)}, UsageError, "'Failing'.*kaboom"),
    "a base of any size": ({"base": Narrow()}, UsageError, "'Narrow'.*codes of several sizes"),
    "a base that is lazy": ({"base": nn.LazyLinear(2)}, UsageError, "'LazyLinear'.*lazy weight"),
    "a base that changes": ({"base": Random(2, 2)}, UsageError, "'Random'.*other results for the same rows"),
    "latent_dim that is no size": ({"latent_dim": 0}, UsageError, "latent_dim must be a whole number >= 1, got 0"),
    "latent_dim that does not fit": ({"latent_dim": 4}, UsageError, r"'Generator'.*fails on codes of shape \(2, 4\)"),
    "an energy of two values": ({"energy": nn.Linear(2, 2)}, UsageError, r"'Linear'.*returns shape \(2, 2\)"),
    "an energy of other rows": ({"energy": nn.Linear(3, 1)}, UsageError, "'Linear'.*fails on rows of shape"),
    "an energy that is not finite": ({"energy": NotFinite(2, 1)}, UsageError, "'NotFinite'.*not finite"),
    "a number as energy": ({"energy": 3}, UsageError, "the energy must be a torch.nn.Module"),
    "a misspelt loss": ({"loss": "kael"}, RecipeError, "did you mean kale"),
    "a module as loss": ({"loss": nn.Linear(2, 1)}, UsageError, "loss must be a loss: .* of type Linear"),
    "a sampler as loss": ({"loss": Mala()}, UsageError, r"loss must be a loss: .* this is a sampler \(Mala\)"),
    "a class as sampler": ({"sampler": Mala}, UsageError, "sampler is the class Mala"),
    "no steps": ({"steps": 0}, RecipeError, "train.steps: 0 is out of range"),
    "half a step": ({"steps": 2.5}, RecipeError, "train.steps: 2.5 is not an integer"),
    "steps twice": ({"train": {"steps": 3}}, UsageError, "steps is given twice"),
    "an unknown argument": ({"smapler": "hmc"}, UsageError, "no argument 'smapler'; did you mean sampler"),
    "a key outside its section": ({"batch_size": 3}, UsageError, "no argument 'batch_size'"),
    "an unknown key": ({"train": {"batchsize": 3}}, RecipeError, "train.batchsize: unknown key; did you mean batch_size"),
    "a section that is none": ({"train": 3}, UsageError, "train must be a mapping"),
    "an unknown override": ({"overrides": ["train.stepz=3"]}, RecipeError, "did you mean steps"),
    "overrides in one text": ({"overrides": "train.steps=3"}, UsageError, "overrides are a list of words"),
    "a misspelt metric": ({"eval": {"metrics": ["frechett"]}}, RecipeError, "did you mean frechet"),
    "a module as metric": ({"eval": {"metrics": [nn.Linear(2, 1)]}}, UsageError, r"eval.metrics\[0\] must be a metric"),
    "an optimiser of another kind": (
        {"optim": {"base": torch.optim.RMSprop(nn.Linear(1, 1).parameters())}}, UsageError, "adam, adamw and sgd"
    ),
    "a set": ({"train": {"batch_size": {3}}}, UsageError, "train.batch_size must be a number, text, a list or a mapping"),
    "a list as data": ({"data": [[1.0, 2.0]]}, UsageError, "data must be a tensor, .* got list"),
    "no data": ({"data": None}, UsageError, "data must be a tensor, .* got NoneType"),
    "no rows": ({"data": ROWS[:0]}, DataError, "data holds no rows"),
    "two rows": ({"data": ROWS[:2]}, DataError, "2 rows"),
    "a missing value": ({"data": torch.cat([ROWS, torch.full((1, 2), np.nan)])}, DataError, "row 300, column 0"),
    "text": ({"data": np.array([["a", "b"]] * 9)}, DataError, "numbers are needed"),
    "a column of text": ({"data": FRAME.assign(k="a")}, DataError, "columns that hold no numbers: 'k'"),
    "a missing file": ({"data": "missing.csv"}, UsageError, "'missing.csv' is neither a dataset, a folder nor a file"),
    "a file of torch": ({"data": __file__}, UsageError, "is not a file of a known kind"),
    "a node without name": ({"data": {"nme": "x"}}, UsageError, "a node has the name of a dataset"),
    "items that are dicts": ({"data": iter([{"image": ROWS}])}, DataError, "is a dict with the keys 'image'"),
    "an iterable that fails": ({"data": (1 // 0 for _ in range(2))}, DataError, "item 0 can't be read: ZeroDivisionError"),
    "rows of two shapes": ({"data": iter([ROWS, ROWS[:, :1]])}, DataError, "all rows must be alike"),
    "a triple": ({"data": (ROWS, ROWS, ROWS)}, UsageError, "a tuple of 3"),
    "held-out rows of another shape": ({"valid": ROWS[:, :1]}, DataError, r"different shapes: \(2,\) and \(1,\)"),
    "held-out rows of another type": ({"test": 3}, UsageError, "test must be a tensor"),
    "held-out rows without labels": ({"labels": CLASSES, "valid": ROWS + 1}, DataError, "data has labels, valid"),
    "too few labels": ({"labels": [0, 1]}, DataError, r"labels of data have shape \(2,\) for 300 rows"),
    "measurements as labels": ({"labels": ROWS[:, 0]}, DataError, "not a whole number"),
    "a column of no frame": ({"labels": "kind"}, UsageError, "names a column"),
    "an unknown way to read": ({"reading": {"standardize": True}}, UsageError, "did you mean standardise"),
    "a way to read that is none": ({"reading": 3}, UsageError, "reading must be a mapping"),
    "a device that is none": ({"device": "quantum"}, UsageError, "device 'quantum' can't be used"),
    "a callback that is none": ({"on_progress": 3}, UsageError, "on_progress must be a function"),
    "resume that is no flag": ({"resume": 1}, UsageError, "resume must be True or False"),
}  # fmt: skip


@pytest.mark.parametrize("mistake", MISTAKES)
def test_one_sentence_and_nothing_left_behind(mistake: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    options, error, words = MISTAKES[mistake]
    with pytest.raises(error, match=words) as refused:
        fit(**{"out": tmp_path / "run", **options})
    assert refused.type is error
    assert len(refused.value.message.splitlines()) <= 2
    assert not list(tmp_path.iterdir())


def test_one_module_cant_be_both(tmp_path: Path) -> None:
    layer = nn.Linear(2, 2)
    with pytest.raises(UsageError, match="are one module"):
        gk.fit(layer, layer, ROWS, out=tmp_path / "run")
    with pytest.raises(UsageError, match=r"share the weight '0.weight'"):
        gk.fit(nn.Sequential(layer), nn.Sequential(layer, nn.Linear(2, 1)), ROWS, out=tmp_path / "run")


def test_a_module_that_fails_later_is_named(tmp_path: Path) -> None:
    class Late(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(2, 1)

        def forward(self, x: Tensor) -> Tensor:
            if len(x) == 64:
                raise ValueError("late kaboom")
            return self.layer(x)

    with pytest.raises(PluginError, match=r"the energy 'Late' .*test_fit.py, line .*late kaboom") as refused:
        fit(out=tmp_path / "run", energy=Late(), train={"batch_size": 64})
    assert "this module of yours" in refused.value.hint


def test_objects_of_the_kit_as_parts(tmp_path: Path) -> None:
    from gebm_kit.bases.mlp import MlpBase
    from gebm_kit.energies.mlp import MlpEnergy

    base, energy = MlpBase(latent_dim=3, hidden=[8], data_shape=(2,)), MlpEnergy(hidden=[8], data_shape=(2,))
    run = fit(out=tmp_path / "run", base=base, energy=energy)
    assert run.model.base is base
    with pytest.raises(UsageError, match=r"states data_shape \(2,\), and the data have shape \(1,\)"):
        fit(ROWS[:, 0], out=tmp_path / "other", base=base)
    with pytest.raises(UsageError, match=r"the energy 'MlpEnergy' .*fails on rows of shape \(2, 1\)"):
        fit(ROWS[:, 0], out=tmp_path / "other", energy=energy, width=1)


def test_anything_that_is_an_array(tmp_path: Path) -> None:
    class Stored:
        def __array__(self, *arguments: Any, **options: Any) -> np.ndarray:
            return ROWS.numpy()

        def __iter__(self) -> Iterator[np.ndarray]:
            return iter(ROWS.numpy())

    assert fit(Stored(), out=tmp_path / "run").dataset.data_shape == (2,)
    with pytest.raises(DataError, match=r"item 0 has shape \(2,\), and batches of rows"):
        fit(iter(ROWS), out=tmp_path / "rows")
