"""Exported folders of LSUN."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from gebm_kit.core.errors import DataError
from gebm_kit.data.lsun import Lsun

PARTS = ("train", "valid", "test")


def test_exported_images(formats: Any, tmp_path: Path) -> None:
    folder = formats.lsun(tmp_path, 20)
    data = Lsun(".", size=16, valid_fraction=0.1, test_fraction=0.2, directory=tmp_path)
    assert data.data_shape == (3, 16, 16)
    assert [len(data.split(part)) for part in PARTS] == [14, 2, 4]
    expected = set()
    for file in folder.rglob("*.webp"):  # the shorter side is 48 of 64: 21 x 16, then the middle
        image = Image.open(file).convert("RGB").resize((21, 16), Image.Resampling.BICUBIC).crop((2, 0, 18, 16))
        expected.add(np.asarray(image).transpose(2, 0, 1).tobytes())
    rows = torch.cat([data.split(part).stored(None) for part in PARTS])
    assert {row.contiguous().numpy().tobytes() for row in rows} == expected
    other = Lsun(".", size=16, valid_fraction=0.1, test_fraction=0.2, seed=1, directory=tmp_path)
    assert not torch.equal(data.split("test").first(4), other.split("test").first(4))


def test_bad_folders(formats: Any, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not exist") as caught:
        Lsun(str(tmp_path / "nowhere"))
    assert "data.py export" in caught.value.hint
    formats.lsun(tmp_path, 2)
    with pytest.raises(DataError, match=r"holds no folder church_outdoor_train") as caught:
        Lsun(str(tmp_path), category="church_outdoor")
    assert "There are: bedroom" in caught.value.hint
    with pytest.raises(DataError, match=r"2 image\(s\)"):
        Lsun(str(tmp_path))
    database = tmp_path / "kitchen_train_lmdb"
    database.mkdir()
    (database / "data.mdb").write_bytes(b"")
    with pytest.raises(DataError, match=r"is LSUN's database \(LMDB\)") as caught:
        Lsun(str(tmp_path), category="kitchen")
    assert "export" in caught.value.hint
