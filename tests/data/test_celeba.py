"""CelebA's aligned images and its partition file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from gebm_kit.core.errors import DataError, UsageError
from gebm_kit.core.interfaces import HasLabels
from gebm_kit.data.celeba import Celeba

PARTS = ("train", "valid", "test")


def test_parts_are_the_official_ones(formats: Any, tmp_path: Path) -> None:
    folder = formats.celeba(tmp_path / "celeba", (5, 3, 2))
    data = Celeba("celeba", size=32, directory=tmp_path)
    assert data.data_shape == (3, 32, 32)
    assert data.value_range == (-1.0, 1.0)
    assert [len(data.split(part)) for part in PARTS] == [5, 3, 2]
    # the central 140 x 140 square of 178 x 218, resized
    expected = Image.open(folder / "img_align_celeba" / "000006.jpg").crop((19, 39, 159, 179)).resize((32, 32), 3)
    pixels = torch.from_numpy(np.asarray(expected).copy()).permute(2, 0, 1)
    assert torch.equal(data.split("valid").first(1)[0], pixels.float() / 127.5 - 1)
    assert data.split("train").stored(torch.tensor([1])).dtype == torch.uint8
    assert not isinstance(data, HasLabels)
    with pytest.raises(UsageError, match=r"data\.attribute"):
        data.labels("train")


def test_crop_178_keeps_all_that_is_square(formats: Any, tmp_path: Path) -> None:
    folder = formats.celeba(tmp_path, (1, 1, 1))
    row = Celeba(str(folder), size=178, crop=178).split("train").first(1)[0]
    expected = np.asarray(Image.open(folder / "img_align_celeba" / "000001.jpg"))[20:198]
    assert torch.equal(row, torch.from_numpy(expected.copy()).permute(2, 0, 1).float() / 127.5 - 1)


def test_an_attribute_is_the_label(formats: Any, tmp_path: Path) -> None:
    folder = formats.celeba(tmp_path, (5, 3, 2))
    data = Celeba(str(folder), size=8, attribute="Smiling")
    assert isinstance(data, HasLabels)
    assert data.num_classes == 2
    assert [data.labels(part).tolist() for part in PARTS] == [[0, 1, 1, 0, 1], [1, 0, 1], [1, 0]]
    with pytest.raises(UsageError, match=r"no attribute 'Smling'; allowed: Smiling, Male"):
        Celeba(str(folder), attribute="Smling")
    table = folder / "list_attr_celeba.txt"
    lines = table.read_text().splitlines()
    table.write_text("\n".join([*lines[:4], "000003.jpg 1", *lines[5:]]))
    with pytest.raises(DataError, match=r"list_attr_celeba\.txt:5 does not hold"):
        Celeba(str(folder), attribute="Smiling")
    table.write_text("\n".join(lines[:6]))
    with pytest.raises(DataError, match=r"does not list 000005\.jpg"):
        Celeba(str(folder), attribute="Smiling")


def test_the_layout_of_the_project_page(formats: Any, tmp_path: Path) -> None:
    folder = formats.celeba(tmp_path, (1, 1, 1))
    for name, place in (
        ("img_align_celeba", "Img"),
        ("list_eval_partition.txt", "Eval"),
        ("list_attr_celeba.txt", "Anno"),
    ):
        (folder / place).mkdir()
        (folder / name).rename(folder / place / name)
    assert Celeba(str(folder), size=8, attribute="Male").labels("train").tolist() == [0]


def test_a_corrupt_image_is_skipped(formats: Any, tmp_path: Path) -> None:
    folder = formats.celeba(tmp_path, (4, 1, 1))
    (folder / "img_align_celeba" / "000002.jpg").write_bytes(b"\xff\xd8no")
    data = Celeba(str(folder), size=8)
    with pytest.warns(UserWarning, match=r"000002\.jpg can't be decoded .* 1 of at most 10"):
        rows = data.split("train").first(4)
    assert torch.equal(rows[1], rows[2])
    with pytest.raises(DataError, match=r"000002\.jpg can't be decoded"):
        Celeba(str(folder), size=8, max_corrupt=0).split("train").first(4)


def test_bad_folders(formats: Any, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not exist") as caught:
        Celeba(str(tmp_path / "nowhere"))
    assert "img_align_celeba.zip" in caught.value.hint
    folder = formats.celeba(tmp_path / "a", (3, 1, 1))
    (folder / "img_align_celeba" / "000004.jpg").unlink()
    with pytest.raises(DataError, match=r"lacks 1 of the 5 images.*the first is 000004\.jpg"):
        Celeba(str(folder))
    partition = folder / "list_eval_partition.txt"
    for text, message in (
        ("000001.jpg 0\n000002.jpg 3\n", r"txt:2: '000002\.jpg 3' is not the name of an image and its part"),
        ("../x.jpg 0\n", r"txt:1: "),
        ("000001.jpg 0\n000001.jpg 1\n", r"txt:2: 000001\.jpg is listed twice"),
        ("000001.jpg 0\n000002.jpg 1\n", r"no image of the test part \(2\)"),
    ):
        partition.write_text(text)
        with pytest.raises(DataError, match=message):
            Celeba(str(folder))
    partition.unlink()
    with pytest.raises(DataError, match=r"holds no list_eval_partition\.txt"):
        Celeba(str(folder))
    with pytest.raises(UsageError, match="crop must be a whole number"):
        Celeba(str(folder), crop=179)
