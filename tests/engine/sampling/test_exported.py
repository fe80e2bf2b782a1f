"""Draws at hand: length, indices, data frames, ArviZ, pictures, and what a notebook shows."""

from __future__ import annotations

import contextlib
import dataclasses
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

import gebm_kit as gk
from gebm_kit.core.errors import PluginError, UsageError
from gebm_kit.core.interfaces import Base
from gebm_kit.core.units import TableUnits
from gebm_kit.engine.sampling.convergence import rhat
from gebm_kit.engine.sampling.draws import Draws
from gebm_kit.engine.sampling.exported import by_chain
from gebm_kit.testing.targets import IdentityBase

MODEL = gk.GEBM(IdentityBase(2), nn.Sequential(nn.Linear(2, 1, bias=False), nn.Flatten(0)))
UNITS = TableUnits(("<script>alert(1)</script>", "b"), (10.0, 0.0), (2.0, 1.0))


class Pictures(Base):
    """Images of a few pixels."""

    latent_dim, data_shape = 4, (3, 2, 2)

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        return z.repeat_interleave(3, 1).reshape(-1, 3, 2, 2).tanh()


IMAGES = gk.GEBM(Pictures(), nn.Sequential(nn.Flatten(), nn.Linear(12, 1, bias=False), nn.Flatten(0)))


def drawn(model: gk.GEBM = MODEL, **changes: Any) -> Draws:
    options: dict[str, Any] = {"num_samples": 100, "num_chains": 25, "warmup": 10, "thin": 1, "steps": 4, "seed": 1}
    with quiet():
        return gk.sample(model, "mala", **{**options, **changes})


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Ignore warnings about chains that are too short to tell anything."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@pytest.fixture(scope="module")
def draws() -> Draws:
    return drawn()


def test_a_number_is_one_draw_and_iterating_yields_all(draws: Draws) -> None:
    assert len(draws) == 100
    for place in (0, 99, -1, np.int64(3), torch.tensor(4)):
        assert torch.equal(draws[place], draws.x[int(place)])
    assert torch.equal(torch.stack(list(draws)), draws.x)
    for place in (100, -101):
        with pytest.raises(IndexError, match="no draw"):
            draws[place]


CHOSEN = {
    "slice": slice(10, 20, 3),
    "backwards": slice(None, None, -2),
    "list": [3, 1, -1],
    "none": [],
    "tensor": torch.tensor([5, 5]),
    "array": np.array([7, 2], dtype=np.uint8),
    "series": pd.Series([1, 2]),
    "mask": torch.arange(100) % 7 == 0,
    "mask of numpy": np.arange(100) % 9 == 0,
    "mask as a list": [index == 4 for index in range(100)],
}


@pytest.mark.parametrize("name", CHOSEN)
def test_other_indices_give_draws(draws: Draws, name: str) -> None:
    which, rows = CHOSEN[name], np.arange(100)
    index = which if isinstance(which, slice) else np.asarray(which, dtype=None if len(which) else int)
    expected = rows[index]
    found = draws[which]
    assert isinstance(found, Draws)
    for field in ("x", "z", "chain"):
        assert torch.equal(getattr(found, field), getattr(draws, field)[torch.from_numpy(expected.copy())])
    assert found.diagnostics is draws.diagnostics


@pytest.mark.parametrize(
    "which", ["a", 1.5, None, (slice(2), 0), torch.zeros(3, dtype=torch.bool), [[1, 2]], {1: 2}, [1.0]]
)
def test_an_index_of_another_kind_is_refused(draws: Draws, which: Any) -> None:
    with pytest.raises(UsageError, match=r"draws are indexed by|a mask of 3 entries does not fit 100 draws"):
        draws[which]
    with pytest.raises(IndexError, match="no draw 100"):
        draws[[1, 100]]


def test_a_frame_of_a_table_is_in_measured_units(draws: Draws) -> None:
    frame = replaced(draws, units=UNITS, labels=torch.arange(100) % 2, class_names=("red", "white")).to_frame()
    assert list(frame.columns) == [*UNITS.columns, "label", "chain"]
    assert np.allclose(frame[UNITS.columns[0]], 10 + 2 * draws.x[:, 0].double())
    assert frame["label"].tolist() == ["red", "white"] * 50
    assert frame["chain"].tolist() == draws.chain.tolist()


def test_a_frame_without_names_counts_its_columns(draws: Draws) -> None:
    assert list(draws.to_frame().columns) == ["x0", "x1", "chain"]
    assert list(drawn(IMAGES).to_frame().columns) == [*(f"x{place}" for place in range(12)), "chain"]
    taken = replaced(draws, units=TableUnits(("chain", "label"), (0.0, 0.0), (1.0, 1.0)), labels=torch.ones(100).long())
    assert list(taken.to_frame().columns) == ["chain", "label", "label_2", "chain_2"]
    assert taken.to_frame()["label_2"].tolist() == [1] * 100
    assert len(draws[:0].to_frame()) == 0


def replaced(draws: Draws, **changes: Any) -> Draws:
    return dataclasses.replace(draws, **changes)


def test_arviz_finds_the_kits_rhat(draws: Draws) -> None:
    from arviz_stats.base import array_stats

    tree = draws.to_arviz()
    z = tree.posterior["z"].to_numpy()
    assert tree.posterior["x"].dims[:2] == ("chain", "draw")
    assert z.shape == (25, 4, 2)
    for coordinate in range(2):
        theirs = float(array_stats.rhat(z[..., coordinate], chain_axis=0, draw_axis=1))
        assert theirs == pytest.approx(float(rhat(torch.from_numpy(z[..., coordinate].T[..., None]))), rel=1e-5)
    trace = np.concatenate([tree["trace"]["z"].to_numpy(), tree["trace"]["potential"].to_numpy()[..., None]], axis=2)
    worst = max(float(array_stats.rhat(trace[..., q], chain_axis=0, draw_axis=1)) for q in range(3))
    assert worst == pytest.approx(draws.diagnostics.rhat_max, rel=1e-4)
    assert np.allclose(trace[..., :2], z, atol=1e-6)  # every step is kept here, in the chain's own order
    assert tree.posterior.attrs["sampler"] == "mala"


def test_arviz_has_the_columns_of_a_table_and_the_labels(draws: Draws) -> None:
    tree = replaced(draws, units=UNITS, labels=draws.chain % 2).to_arviz()
    measured = tree.posterior["x"].sel(column=UNITS.columns[0]).to_numpy()
    assert np.allclose(measured, 10 + 2 * draws.to_arviz().posterior["x"].to_numpy()[..., 0])
    assert tree["sample_stats"]["label"].to_numpy()[:, 0].tolist() == [chain % 2 for chain in range(25)]
    assert "trace" not in tree.children


def test_chains_with_a_draw_more_lose_the_oldest() -> None:
    order = by_chain(torch.tensor([0, 1, 2, 0, 1, 2, 0]))  # chain 0 has three draws; the newest come first
    assert order.tolist() == [[3, 0], [4, 1], [5, 2]]
    assert by_chain(torch.empty(0, dtype=torch.int64)).shape == (0, 0)


def test_a_missing_library_is_one_error(draws: Draws, monkeypatch: pytest.MonkeyPatch) -> None:
    def without(name: str, *rest: Any) -> Any:
        raise ImportError(name)

    monkeypatch.setattr("importlib.import_module", without)
    for call, extra in ((draws.to_frame, "frames"), (draws.to_arviz, "arviz")):
        with pytest.raises(PluginError, match="is not installed") as caught:
            call()
        assert f"gebm-kit[{extra}]" in caught.value.hint


def test_a_grid_of_images(tmp_path: Path) -> None:
    draws = drawn(IMAGES)
    picture = draws.grid(10, columns=4, value_range=(-1, 1), scale=1)
    assert picture.size == (4 * 3 - 1, 3 * 3 - 1)
    expected = ((draws.x[0].double() + 1) / 2 * 255).round().byte().permute(1, 2, 0)
    assert np.abs(np.asarray(picture)[:2, :2].astype(int) - expected.numpy()).max() <= 1
    assert draws.grid(scale=3).size[0] == 3 * (8 * 3 - 1)
    assert draws.grid().mode == "RGB"
    for call, message in (
        (
            lambda: drawn().grid(),
            r"grid\(\) draws images of shape \(C, H, W\).* and these are 100 draws of shape \(2,\)",
        ),
        (lambda: draws.grid(0), "num must be a whole number >= 1"),
        (lambda: draws.grid(columns="a"), "columns must be a whole number"),
        (lambda: draws[:0].grid(), "0 draws"),
    ):
        with pytest.raises(UsageError, match=message):
            call()


def test_streamed_draws_have_the_same(tmp_path: Path) -> None:
    draws = drawn()
    with quiet():
        streamed = drawn(out=tmp_path / "d")
    assert len(streamed) == 100
    frame = streamed.to_frame().sort_values(["x0", "x1"], ignore_index=True)
    assert frame.equals(draws.to_frame().sort_values(["x0", "x1"], ignore_index=True))
    assert np.array_equal(streamed.to_arviz().posterior["z"], draws.to_arviz().posterior["z"])
    assert repr(streamed).startswith("ShardedDraws(100 of shape 2 in 1 files; mala, 25 chains")
    assert "<table" in streamed._repr_html_()
    with quiet():
        images = gk.sample(IMAGES, "mala", num_samples=20, num_chains=10, warmup=2, steps=2, out=tmp_path / "i")
    assert images.grid(4, scale=1).size == (4 * 3 - 1, 2)


def test_what_is_shown_is_short_and_escaped(draws: Draws) -> None:
    assert repr(draws).startswith("Draws(100 of shape 2; mala, 25 chains")
    assert len(repr(draws).splitlines()) == 1
    named = replaced(draws, units=UNITS, labels=draws.chain % 2, class_names=("<b>", "&"))
    page = named._repr_html_()
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert "<script" not in page
    assert "<b>" not in page
    assert "&lt;b&gt;" in page
    assert "data:image/png;base64," in drawn(IMAGES)._repr_html_()


def test_pictures_know_their_range_after_a_file(tmp_path: Path) -> None:
    draws = replaced(drawn(IMAGES), value_range=(-1.0, 1.0))
    for name in ("d.npz", "d.safetensors"):
        draws.save(tmp_path / name)
        assert gk.load_draws(tmp_path / name).value_range == (-1.0, 1.0)
    drawn(IMAGES).save(tmp_path / "none.npz")
    assert gk.load_draws(tmp_path / "none.npz").value_range is None
