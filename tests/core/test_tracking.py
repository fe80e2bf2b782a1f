"""Names as trackers take them, and the ids of a run in its trackers."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest

from gebm_kit.core.errors import PluginError, UsageError
from gebm_kit.core.progress import GebmKitWarning
from gebm_kit.core.tracking import (
    IDS,
    MAX_NAME,
    Names,
    default_name,
    flat,
    keep_id,
    own_folder,
    plain_name,
    tracked_id,
    tracker_package,
    variables,
)
from gebm_kit.testing.logger_checks import NAMES


def test_a_name_is_in_one_group_and_keeps_its_letters() -> None:
    names = Names()
    assert names.metric("kale") == "train/kale"
    assert names.metric("eval.gebm.mmd") == "eval/gebm.mmd"
    assert names.metric("eval.gebm.précision @5") == "eval/gebm.précision _5"
    assert names.figure("samples") == "figures/samples"
    assert names.table("evaluation") == "tables/evaluation"
    assert names.metric("a.../../b") == "a/_.._b"


@pytest.mark.parametrize("name", [*NAMES, *(f"eval.gebm.{name}" for name in NAMES), ".", "..", "a\x00b\n", "\udc80.x"])
def test_any_name_is_made_fit(name: str) -> None:
    for tidy in (Names().metric(name), f"x/{plain_name(name)}"):
        assert re.fullmatch(r"[\w\-. ]+/[\w\-. ]+", tidy)
        assert len(tidy) <= MAX_NAME + 2
        assert not {"", ".", ".."} & set(tidy.split("/"))


def test_two_names_stay_two() -> None:
    names = Names()
    long = [f"eval.{300 * 'x'}{end}" for end in "ab"]
    given = ["eval.recall@5", "eval.recall#5", "eval.recall@5", *long]
    found = [names.metric(name) for name in given]
    assert found[0] == found[2] == "eval/recall_5"
    assert re.fullmatch(r"eval/recall_5-[0-9a-f]{8}", found[1])
    assert found[3] != found[4]
    assert found[1] == Names().metric("eval.recall@5") + found[1][-9:]


def test_the_default_name_is_that_of_the_directory(tmp_path: Path) -> None:
    assert default_name(tmp_path / "quickstart" / "20261201T031056Z-1a2b3c") == "quickstart-20261201T031056Z-1a2b3c"
    assert default_name(tmp_path / "my {{run}}") == "my __run__"


def test_ids_are_kept_for_every_tracker(tmp_path: Path) -> None:
    assert tracked_id(tmp_path, "wandb") is None
    keep_id(tmp_path, "wandb", "abc")
    keep_id(tmp_path, "mlflow", "def")
    assert (tracked_id(tmp_path, "wandb"), tracked_id(tmp_path, "mlflow")) == ("abc", "def")
    assert json.loads((tmp_path / IDS).read_text()) == {"schema": 1, "wandb": "abc", "mlflow": "def"}


@pytest.mark.parametrize("text", ["{", "[]", '{"wandb": "../../x"}', '{"wandb": 3}', "[" * 10_000])
@pytest.mark.filterwarnings("ignore::gebm_kit.core.progress.GebmKitWarning")
def test_ids_of_somebody_else_are_checked(tmp_path: Path, text: str) -> None:
    (tmp_path / IDS).write_text(text)
    assert tracked_id(tmp_path, "wandb") is None
    keep_id(tmp_path, "wandb", "abc")
    assert tracked_id(tmp_path, "wandb") == "abc"


def test_a_damaged_file_of_ids_is_named(tmp_path: Path) -> None:
    (tmp_path / IDS).write_text("{")
    with pytest.warns(GebmKitWarning, match=f"{IDS}.*as a new one"):
        tracked_id(tmp_path, "wandb")


def test_a_folder_with_a_link_is_refused(tmp_path: Path) -> None:
    assert own_folder(tmp_path / "new") == tmp_path / "new"
    (tmp_path / "new" / "x").symlink_to(tmp_path)
    with pytest.raises(UsageError, match="new/x is a symbolic link"):
        own_folder(tmp_path / "new")


def test_variables_are_set_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KIT_GIVEN", "mine")
    before = dict(os.environ)
    with variables({"KIT_GIVEN": None, "KIT_OWN": "1"}):
        assert "KIT_GIVEN" not in os.environ
        os.environ["KIT_STRAY"] = "x"
    assert dict(os.environ) == before


def test_a_missing_package_names_its_extra() -> None:
    with pytest.raises(PluginError, match="logger 'wandb' needs the package no_such_package") as caught:
        tracker_package("no_such_package", "wandb", {})
    assert "pip install 'gebm-kit[wandb]'" in caught.value.hint


def test_nested_data_is_flat() -> None:
    config = {"train": {"steps": 3, "penalty": None}, "metrics": [{"name": "mmd"}], "loggers": []}
    assert flat(config) == {"loggers": "[]", "metrics.0.name": "mmd", "train.penalty": "null", "train.steps": "3"}
