"""Draws of a table: column names and units in .csv and .parquet, and what other files say of them."""

from __future__ import annotations

import csv
import json
import sys
from types import ModuleType

import numpy as np
import pytest
import torch
from safetensors import safe_open

import gebm_kit as gk
from gebm_kit.core.components import Component, Registered
from gebm_kit.core.errors import CheckpointError, DataError, UsageError
from gebm_kit.core.plugins import installed
from gebm_kit.core.units import TableUnits
from gebm_kit.data.tensors import TensorDataset
from gebm_kit.engine.run_directory.run import Run

RECIPE = """schema: 1
data: {data}
base: {{name: mlp, latent_dim: 2, hidden: [8]}}
energy: {{name: mlp, hidden: [8]}}
train: {{steps: 3, batch_size: 32, start_steps: 0, final: {{steps: 0}}}}
sampler: {{name: mala}}
sample: {{num_samples: 30, num_chains: 10, warmup: 2, steps: 2}}
eval: {{metrics: [mmd], num_samples: 10, num_sets: 2, num_reference: 10}}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("tables")
    rows = np.random.default_rng(0).normal(size=(200, 2)) * [5, 1e-3] + [170, 1.7e9]
    (path / "t.csv").write_text('"height, cm",time\n' + "".join(f"{a!r},{b!r}\n" for a, b in rows.tolist()))
    np.save(path / "t.npy", rows[:, :1])
    return path


def run_on(folder, name, data):
    (folder / f"{name}.yaml").write_text(RECIPE.format(data=data))
    place = folder / name
    return gk.load_run(place) if place.exists() else gk.train(folder / f"{name}.yaml", out=place)


@pytest.fixture(scope="module")
def run(folder):
    return run_on(folder, "tabular", f"{{name: tabular, path: {folder / 't.csv'}}}")


@pytest.mark.filterwarnings("ignore")
class TestTable:
    def test_names_and_units(self, run, folder):
        draws = gk.sample(run, out=folder / "draws.csv")
        with open(folder / "draws.csv", newline="") as file:
            names, *rows = csv.reader(file)
        assert names == ["height, cm", "time"]
        found = torch.tensor([[float(value) for value in row] for row in rows], dtype=torch.float64)
        expected = draws.x.double() * run.dataset.std + run.dataset.mean
        assert torch.equal(found, expected)
        assert torch.equal(found, draws.units.measured(draws.x))
        assert abs(float(found[:, 0].mean()) - 170) < 100
        torch.testing.assert_close(run.dataset.standardised(found), draws.x.float(), rtol=1e-3, atol=1e-3)

    def test_parquet_and_save_do_the_same(self, run, folder):
        parquet = pytest.importorskip("pyarrow.parquet")
        draws = gk.sample(run)
        draws.save(folder / "draws.parquet")
        table = parquet.read_table(folder / "draws.parquet")
        assert table.column_names == ["height, cm", "time"]
        found = torch.from_numpy(np.column_stack([column.to_numpy() for column in table.columns]))
        assert torch.equal(found, draws.units.measured(draws.x))

    def test_what_was_written_can_be_scored(self, run, folder):
        from gebm_kit.engine.likelihood.row_sources import rows_of_file

        draws = gk.sample(run, out=folder / "again.csv")
        found = rows_of_file(folder / "again.csv", None, run.model.data_shape, run.dataset)
        rows, names = found.rows, found.names
        assert names == ("height, cm", "time")
        expected = gk.score(gk.GEBM(run.model.base, run.model.energy), draws.x).energy
        torch.testing.assert_close(gk.score(run, rows).energy, expected, rtol=1e-3, atol=1e-3)

    @pytest.mark.parametrize("suffix", ["npz", "safetensors"])
    def test_other_files_state_the_units(self, run, folder, suffix):
        draws = gk.sample(run, out=folder / f"draws.{suffix}")
        path = folder / f"draws.{suffix}"
        if suffix == "npz":
            stated = json.loads(str(np.load(path)["units"]))
            assert torch.equal(torch.from_numpy(np.load(path)["x"]), draws.x)
            assert torch.equal(torch.from_numpy(np.load(path)["measured"]), draws.units.measured(draws.x))
            assert tuple(np.load(path)["columns"]) == draws.units.columns
        else:
            with safe_open(path, "pt") as file:
                stated = json.loads(file.metadata()["units"])
        assert stated == run.dataset.units.as_dict()
        assert gk.load_draws(path).units == run.dataset.units

    def test_shards_state_them_in_the_index(self, run, folder):
        gk.sample(run, out=folder / "shards")
        assert json.loads((folder / "shards" / "index.json").read_text())["units"] == run.dataset.units.as_dict()
        assert gk.load_draws(folder / "shards").units == run.dataset.units

    def test_the_data_are_not_needed(self, run, folder):
        again = gk.load_run(run.path)
        again.__dict__["dataset"] = None
        assert again.units(needed=True) == run.dataset.units

    def test_a_run_of_an_earlier_version_opens_its_data(self, run):
        again = gk.load_run(run.path)
        again.checkpoint.state["facts"].pop("units")
        assert again.units(needed=False) is None
        assert again.units(needed=True) == run.dataset.units

    @pytest.mark.parametrize("units", [3, {"columns": ["a"]}, {"columns": ["a"], "mean": [0], "std": []}])
    def test_damaged_units(self, run, units):
        again = Run(run.path)
        again.checkpoint.state["facts"]["units"] = units
        with pytest.raises(CheckpointError, match="the units of the table are damaged"):
            again.units(needed=False)

    def test_arrays_without_names(self, folder):
        run = run_on(folder, "arrays", f"{{name: arrays, path: {folder / 't.npy'}, standardise: true}}")
        gk.sample(run, out=folder / "arrays.csv")
        lines = (folder / "arrays.csv").read_text().splitlines()
        assert lines[0] == "x1"
        assert abs(float(np.mean([float(line) for line in lines[1:]])) - 170) < 100

    def test_whole_numbers_and_grids(self, folder):
        parquet = pytest.importorskip("pyarrow.parquet")
        rng = np.random.default_rng(1)
        columns = [rng.poisson(9, 200), np.round(rng.normal(size=200), 2), rng.normal(size=200)]
        lines = [
            "count,money,free",
            *(f"{a},{b},{c!r}" for a, b, c in zip(*(c.tolist() for c in columns), strict=True)),
        ]
        (folder / "grid.csv").write_text("\n".join(lines) + "\n")
        run = run_on(folder, "grid", f"{{name: tabular, path: {folder / 'grid.csv'}}}")
        draws = gk.sample(run, out=folder / "grid-draws.csv")
        with open(folder / "grid-draws.csv", newline="") as file:
            names, *found = csv.reader(file)
        assert names == ["count", "money", "free"]
        assert all(row[0].lstrip("-").isdecimal() for row in found)
        assert all(row[1] == repr(round(float(row[1]), 2) + 0.0) for row in found)
        assert any(len(row[2].partition(".")[2]) > 6 for row in found)
        draws.save(folder / "grid-draws.parquet")
        table = parquet.read_table(folder / "grid-draws.parquet")
        assert [str(kind) for kind in table.schema.types] == ["int64", "double", "double"]
        assert table.column("count").to_pylist() == [int(row[0]) for row in found]
        assert torch.equal(draws.units.measured(draws.x), run.dataset.measured(draws.x))

    def test_a_table_is_not_read_back_as_draws(self, run, folder):
        gk.sample(run, out=folder / "table.csv")
        with pytest.raises(DataError, match="is a table of draws, without latent codes"):
            gk.load_draws(folder / "table.csv")


class Doubled(TensorDataset):
    """A table that has `measured`, but no `TableUnits`: measurements are exp(y)."""

    columns = ("income", "age")

    def __init__(self) -> None:
        rows = torch.randn(90, 2, generator=torch.Generator().manual_seed(0))
        self._fill(dict(zip(("train", "valid", "test"), rows.split(30), strict=True)))

    def measured(self, rows):
        return rows.double().exp()


@pytest.mark.filterwarnings("ignore")
def test_a_dataset_that_states_measurements_itself(tmp_path, monkeypatch):
    module = ModuleType("gebm_kit_test_doubled")
    module.Doubled = Doubled
    record = Registered(
        Component("dataset", "test-doubled", f"{module.__name__}:Doubled", "From a test"), "a-test", "1"
    )
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setitem(installed().registry._records, ("dataset", "test-doubled"), [record])
    run = run_on(tmp_path, "doubled", "{name: test-doubled}")
    again = gk.load_run(run.path)
    draws = gk.sample(again, out=tmp_path / "draws.csv")
    with open(tmp_path / "draws.csv", newline="") as file:
        names, *rows = csv.reader(file)
    assert names == ["income", "age"]
    expected = draws.x.double().exp()
    assert torch.equal(torch.tensor([[float(v) for v in row] for row in rows], dtype=torch.float64), expected)
    gk.sample(again).save(tmp_path / "same.csv")
    assert (tmp_path / "same.csv").read_text() == (tmp_path / "draws.csv").read_text()
    gk.sample(again, out=tmp_path / "draws.npz")
    assert gk.load_draws(tmp_path / "draws.npz").units is None


def test_images_are_no_table(tmp_path):
    from gebm_kit.engine.sampling.draws import check_output

    with pytest.raises(UsageError, match=r"draws.csv is a table of columns, and the draws have shape \(1, 8, 8\)"):
        check_output(tmp_path / "draws.csv", (1, 8, 8))


def test_units_go_there_and_back():
    units = TableUnits(("a", "b"), (1.0, 1.7e9), (2.0, 1e-3))
    assert TableUnits.from_dict(json.loads(json.dumps(units.as_dict()))) == units
    rows = torch.tensor([[3.0, 1.7e9 + 0.002]], dtype=torch.float64)
    torch.testing.assert_close(units.measured(units.seen(rows)), rows, rtol=0, atol=1e-6)
