"""Draws of classes in a directory: the same as in memory, in the same order, resumed class by class, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import gebm_kit as gk
from gebm_kit.core.errors import DataError, UsageError
from gebm_kit.engine.sampling import class_shards
from gebm_kit.engine.sampling.class_shards import CLASSES, LABELS, ClassShards, newest_to_resume, open_classes

from .test_by_class import QUICK, model

pytestmark = pytest.mark.filterwarnings("ignore::gebm_kit.core.progress.GebmKitWarning")

ASKED: dict[str, Any] = {"labels": [2, 0, 0], "num_samples": 90, "seed": 4, **QUICK}


@pytest.mark.parametrize("sampler", ["hmc", "imh", "smc"])
def test_they_are_the_draws_in_memory_in_the_same_order(tmp_path: Path, sampler: str) -> None:
    found = gk.sample(model(), sampler, out=tmp_path / "draws", **ASKED)
    assert isinstance(found, ClassShards)
    expected, again = gk.sample(model(), sampler, **ASKED), gk.load_draws(tmp_path / "draws")
    for name in ("x", "z", "labels", "chain"):
        assert torch.equal(getattr(again, name), getattr(expected, name)), name
    assert again.labels.tolist() == [2, 0, 0] * 30
    assert (found.num_samples, found.diagnostics.num_samples, found.diagnostics.seed) == (90, 90, 4)
    assert found.diagnostics.rhat_max == pytest.approx(expected.diagnostics.rhat_max, nan_ok=True)


def test_iteration_is_class_by_class(tmp_path: Path) -> None:
    found = gk.sample(model(), "hmc", out=tmp_path / "draws", **ASKED)
    parts = list(found)
    assert torch.equal(torch.cat([part.labels for part in parts]), found.in_order)
    assert sum(len(x) for x in found.pictures()) == 90
    whole = found.load()
    for label in (0, 2):
        x = torch.cat([part.x for part in parts if int(part.labels[0]) == label])
        assert torch.equal(x.sort(0).values, whole.x[whole.labels == label].sort(0).values)


def test_a_class_with_fewer_draws_than_chains(tmp_path: Path) -> None:
    place: dict[str, Any] = {**QUICK, "num_samples": 30, "seed": 1, "labels": [0] * 28 + [1, 2]}
    found, expected = gk.sample(model(), "hmc", out=tmp_path / "draws", **place), gk.sample(model(), "hmc", **place)
    assert torch.equal(found.load().x, expected.x)
    assert [len(part.x) for part in found] == [28, 1, 1]


def test_an_interrupted_sampling_is_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    draw_into, done = class_shards.draw_into, []

    def stopping(path: Path, *words: Any, **options: Any) -> Any:
        if done:
            raise KeyboardInterrupt
        done.append(path.name)
        return draw_into(path, *words, **options)

    out = tmp_path / "draws"
    monkeypatch.setattr(class_shards, "draw_into", stopping)
    with pytest.raises(KeyboardInterrupt):
        gk.sample(model(), "hmc", out=out, **ASKED)
    monkeypatch.undo()
    assert done == ["class-0"]
    with pytest.raises(DataError, match="sampling was interrupted"):
        gk.load_draws(out)
    with pytest.raises(UsageError, match=r"holds an unfinished sampling"):
        gk.sample(model(), "hmc", out=out, **ASKED)
    assert newest_to_resume(tmp_path) == out
    before = (out / "class-0" / "index.json").stat().st_mtime_ns
    found = gk.sample(model(), "hmc", out=out, resume=True, **ASKED)
    assert (out / "class-0" / "index.json").stat().st_mtime_ns == before
    assert torch.equal(found.load().x, gk.sample(model(), "hmc", **ASKED).x)
    assert newest_to_resume(tmp_path) is None
    once_more = gk.sample(model(), "hmc", out=out, resume=True, **ASKED)
    assert torch.equal(once_more.load().x, found.load().x)


def test_other_draws_are_refused(tmp_path: Path) -> None:
    out = tmp_path / "draws"
    gk.sample(model(), "imh", out=out, **ASKED)
    with pytest.raises(UsageError, match="is not empty: it holds draws"):
        gk.sample(model(), "imh", out=out, **ASKED)
    with pytest.raises(UsageError, match="holds another sampling: of other classes"):
        gk.sample(model(), "imh", out=out, resume=True, **{**ASKED, "labels": [0, 2, 2]})
    with pytest.raises(UsageError, match="holds another sampling"):
        gk.sample(model(), "imh", out=out, resume=True, **{**ASKED, "seed": 5})
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "file").write_text("mine")
    with pytest.raises(UsageError, match="is not empty"):
        gk.sample(model(), "imh", out=tmp_path / "other", **ASKED)
    with pytest.raises(UsageError, match="is a file; draws without a suffix"):
        gk.sample(model(), "imh", out=_file(tmp_path / "plain"), **ASKED)


def _file(path: Path) -> Path:
    path.write_text("")
    return path


@pytest.mark.parametrize(
    ("name", "content"),
    [
        (CLASSES, "{"),
        (CLASSES, '{"classes": 3}'),
        (CLASSES, json.dumps({"classes": {"0": {"draws": 90}}, "class_names": None, "seed": 0})),
        (LABELS, "nonsense"),
        ("class-0/index.json", "{}"),
    ],
)
def test_damaged_files_are_named(tmp_path: Path, name: str, content: str) -> None:
    gk.sample(model(), "imh", out=tmp_path / "draws", **ASKED)
    (tmp_path / "draws" / name).write_text(content)
    with pytest.raises(DataError, match=name.split("/")[-1]):
        open_classes(tmp_path / "draws")


def test_names_of_classes_are_kept(tmp_path: Path) -> None:
    one = model()
    one.class_names = ("a", "b", "c")
    found = gk.sample(one, "imh", out=tmp_path / "draws", **ASKED)
    assert found.class_names == gk.load_draws(tmp_path / "draws").class_names == ("a", "b", "c")
