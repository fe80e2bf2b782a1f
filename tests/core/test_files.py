"""What files are written with: permissions and numbers that JSON can hold."""

import json
import math
import os

import pytest

from gebm_kit.core.files import finite_or_none, plain, umask, write_json


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, None])
def test_what_json_cant_hold_is_none(value):
    assert finite_or_none(value) is None


@pytest.mark.parametrize("value", [0.0, -1.5, 3])
def test_other_numbers_stay(value):
    assert finite_or_none(value) == value


def test_plain_reaches_every_depth(tmp_path):
    value = {"a": (1.0, math.nan), 2: [{"b": -math.inf}], "c": "nan", "d": True}
    wanted = {"a": [1.0, None], "2": [{"b": None}], "c": "nan", "d": True}
    assert plain(value) == wanted
    write_json(tmp_path / "file.json", value)
    assert json.loads((tmp_path / "file.json").read_text()) == wanted


def test_umask_is_read_and_left_alone(tmp_path):
    before = os.umask(0o027)
    try:
        assert (umask(), umask()) == (0o027, 0o027)
        write_json(tmp_path / "file.json", 1)
        assert (tmp_path / "file.json").stat().st_mode & 0o777 == 0o640
    finally:
        os.umask(before)
