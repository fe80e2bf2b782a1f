"""Folders of images."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from gebm_kit.core.errors import DataError, UsageError
from gebm_kit.core.interfaces import HasLabels
from gebm_kit.core.progress import GebmKitWarning
from gebm_kit.data.image_folder import ImageFolder

PARTS = ("train", "valid", "test")


def save(path: Path, pixels: np.ndarray, **arguments: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels.astype(np.uint8)).save(path, **arguments)
    return path


def fill(folder: Path, num: int = 20, shape: tuple[int, ...] = (8, 8, 3)) -> Path:
    rng = np.random.default_rng(0)
    for index in range(num):
        save(folder / f"{index:03d}.png", rng.integers(0, 256, shape))
    return folder


def all_rows(data: ImageFolder) -> torch.Tensor:
    return torch.cat([data.split(part).first(10**6) for part in PARTS])


class TestPixels:
    def test_right_sized_images_come_back_exactly(self, tmp_path: Path) -> None:
        fill(tmp_path)
        data = ImageFolder(".", size=8, directory=tmp_path)
        expected = {
            (torch.from_numpy(np.asarray(Image.open(f)).copy()).permute(2, 0, 1).float() / 127.5 - 1).numpy().tobytes()
            for f in tmp_path.glob("*.png")
        }
        assert {row.numpy().tobytes() for row in all_rows(data)} == expected
        assert data.data_shape == (3, 8, 8)
        assert data.value_range == (-1.0, 1.0)

    def test_the_shorter_side_is_resized_and_the_centre_kept(self, tmp_path: Path) -> None:
        """A crop keeps the middle third of a wide image of three vertical stripes."""
        for index in range(3):
            pixels = np.zeros((10, 30, 3))
            pixels[:, 10:20] = 200
            save(tmp_path / f"{index}.png", pixels)
        rows = all_rows(ImageFolder(".", size=10, directory=tmp_path))
        assert torch.allclose(rows, torch.full_like(rows, 200 / 127.5 - 1))

    def test_crop_comes_before_the_resize(self, tmp_path: Path) -> None:
        for index in range(3):
            pixels = np.zeros((40, 30, 3))
            pixels[10:30, 5:25] = 100
            save(tmp_path / f"{index}.png", pixels)
        rows = all_rows(ImageFolder(".", size=10, crop=20, directory=tmp_path))
        assert torch.allclose(rows, torch.full_like(rows, 100 / 127.5 - 1))

    def test_shrinking_averages_instead_of_skipping(self, tmp_path: Path) -> None:
        for index in range(3):
            save(tmp_path / f"{index}.png", np.indices((64, 64)).sum(0)[..., None].repeat(3, 2) % 2 * 255)
        rows = all_rows(ImageFolder(".", size=8, directory=tmp_path))
        assert float(rows.abs().max()) < 0.05  # a fine checkerboard turns to middle grey

    def test_mixed_sizes_modes_and_formats(self, tmp_path: Path) -> None:
        rng = np.random.default_rng(0)
        save(tmp_path / "a.png", rng.integers(0, 256, (12, 9, 3)))
        save(tmp_path / "b.jpg", rng.integers(0, 256, (20, 30, 3)))
        save(tmp_path / "c.JPEG", rng.integers(0, 256, (16, 16)))
        save(tmp_path / "d.png", rng.integers(0, 256, (16, 16, 4)))
        Image.fromarray(rng.integers(0, 256, (9, 9, 3), dtype=np.uint8)).convert("P").save(tmp_path / "e.png")
        for channels in (1, 3):
            data = ImageFolder(".", size=8, channels=channels, directory=tmp_path)  # type: ignore[arg-type]
            assert all_rows(data).shape == (5, channels, 8, 8)

    def test_photographs_are_turned_upright(self, tmp_path: Path) -> None:
        pixels = np.zeros((8, 8, 3))
        pixels[:4] = 255
        exif = Image.Exif()
        exif[0x0112] = 3  # upside down
        for index in range(3):
            save(tmp_path / f"{index}.jpg", pixels, exif=exif, quality=95)
        rows = all_rows(ImageFolder(".", size=8, directory=tmp_path))
        assert float(rows[:, :, 6].mean()) > 0.9
        assert float(rows[:, :, 1].mean()) < -0.9

    def test_without_size_images_stay_as_they_are(self, tmp_path: Path) -> None:
        fill(tmp_path, shape=(6, 10, 3))
        assert ImageFolder(".", size=None, directory=tmp_path).data_shape == (3, 6, 10)
        assert ImageFolder(".", size=None, crop=5, directory=tmp_path).data_shape == (3, 5, 5)


class TestParts:
    def test_the_split_depends_on_names_and_seed_alone(self, tmp_path: Path) -> None:
        first, second = tmp_path / "one", tmp_path / "two"
        fill(first)
        second.mkdir()
        for file in sorted(first.iterdir(), reverse=True):
            (second / file.name).write_bytes(file.read_bytes())
        a, b = (ImageFolder(name, size=8, directory=tmp_path) for name in ("one", "two"))
        for part in PARTS:
            assert torch.equal(a.split(part).first(99), b.split(part).first(99))
        c = ImageFolder("one", size=8, seed=1, directory=tmp_path)
        assert not torch.equal(a.split("train").first(99), c.split("train").first(99))

    def test_shares(self, tmp_path: Path) -> None:
        fill(tmp_path)
        data = ImageFolder(".", size=8, valid_fraction=0.2, test_fraction=0.3, directory=tmp_path)
        assert [len(data.split(part)) for part in PARTS] == [10, 4, 6]

    def test_labels_are_the_first_folders(self, tmp_path: Path) -> None:
        for name, value in (("zebra", 250), ("ant", 5), ("bee", 100)):
            for index in range(8):
                save(tmp_path / name / f"deep{index % 2}" / f"{index}.png", np.full((4, 4, 3), value))
        data = ImageFolder(".", size=4, directory=tmp_path)
        assert isinstance(data, HasLabels)
        assert data.num_classes == 3
        value_of = torch.tensor([5.0, 100.0, 250.0]) / 127.5 - 1  # ant, bee, zebra
        for part in PARTS:
            assert torch.allclose(data.split(part).first(99)[:, 0, 0, 0], value_of[data.labels(part)])

    def test_no_labels_without_two_folders(self, tmp_path: Path) -> None:
        fill(tmp_path / "only")
        data = ImageFolder(".", size=8, directory=tmp_path)
        assert not isinstance(data, HasLabels)
        with pytest.raises(UsageError, match="no labels"):
            data.labels("train")
        fill(tmp_path / "other")
        save(tmp_path / "loose.png", np.zeros((8, 8, 3)))
        assert not isinstance(ImageFolder(".", size=8, directory=tmp_path), HasLabels)

    def test_hidden_files_are_left_alone(self, tmp_path: Path) -> None:
        fill(tmp_path)
        (tmp_path / "._001.png").write_bytes(b"not an image")
        (tmp_path / ".thumbnails").mkdir()
        (tmp_path / ".thumbnails" / "1.png").write_bytes(b"not an image")
        (tmp_path / "notes.txt").write_text("no image either")
        assert len(all_rows(ImageFolder(".", size=8, directory=tmp_path))) == 20


class TestCache:
    def test_images_are_decoded_once_and_only_when_asked_for(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        fill(tmp_path)
        opened: list[str] = []
        real = Image.open
        monkeypatch.setattr(Image, "open", lambda path, *a: opened.append(str(path)) or real(path, *a))
        data = ImageFolder(".", size=8, directory=tmp_path)
        assert not opened
        data.split("train").batch(torch.tensor([3, 5, 3]))
        assert len(opened) == 2
        data.split("train").batch(torch.tensor([5, 3]))
        assert len(opened) == 2

    def test_without_a_cache_the_data_is_the_same(self, tmp_path: Path) -> None:
        fill(tmp_path)
        with_cache = ImageFolder(".", size=8, directory=tmp_path)
        without = ImageFolder(".", size=8, cache_mb=0, directory=tmp_path)
        for _ in range(2):
            assert torch.equal(all_rows(with_cache), all_rows(without))


class TestBadInput:
    def test_missing_empty_and_not_a_folder(self, tmp_path: Path) -> None:
        (tmp_path / "empty").mkdir()
        (tmp_path / "file").write_text("x")
        for path, message in (
            ("nowhere", "does not exist"),
            ("empty", "holds no .png"),
            ("file", "is not a folder"),
        ):
            with pytest.raises(DataError, match=message) as caught:
                ImageFolder(path, directory=tmp_path)
            assert "data.path" in caught.value.hint

    def test_two_images(self, tmp_path: Path) -> None:
        fill(tmp_path, num=2)
        with pytest.raises(DataError, match="train, valid and test need one each"):
            ImageFolder(".", directory=tmp_path)

    def test_mixed_sizes_name_two_files(self, tmp_path: Path) -> None:
        fill(tmp_path)
        save(tmp_path / "zzz.png", np.zeros((8, 9, 3)))
        with pytest.raises(DataError, match=r"000.png is 8x8, .*zzz.png is 9x8") as caught:
            ImageFolder(".", size=None, directory=tmp_path)
        assert "data.size" in caught.value.hint

    @pytest.mark.parametrize("damage", ["truncated", "text", "empty"])
    def test_a_damaged_image_is_named(self, damage: str, tmp_path: Path) -> None:
        fill(tmp_path)
        victim = tmp_path / "007.png"
        content = {"truncated": victim.read_bytes()[:60], "text": b"hello", "empty": b""}[damage]
        victim.write_bytes(content)
        data = ImageFolder(".", size=8, max_corrupt=0, directory=tmp_path)
        with pytest.raises(DataError, match=r"007.png can't be decoded") as caught:
            all_rows(data)
        assert "data.max_corrupt" in caught.value.hint
        if damage != "truncated":
            with pytest.raises(DataError, match=r"007.png can't be decoded"):
                ImageFolder(".", size=None, max_corrupt=0, directory=tmp_path)

    def test_an_image_smaller_than_the_crop_is_named(self, tmp_path: Path) -> None:
        fill(tmp_path)
        with pytest.raises(DataError, match=r"\.png is 8x8, smaller than crop 9"):
            all_rows(ImageFolder(".", size=4, crop=9, directory=tmp_path))

    def test_sixteen_bit_images_are_refused(self, tmp_path: Path) -> None:
        for index in range(3):
            Image.fromarray(np.full((8, 8), 40_000, dtype=np.uint16)).save(tmp_path / f"{index}.png")
        with pytest.raises(DataError, match="more than 8 bits"):
            all_rows(ImageFolder(".", size=8, directory=tmp_path))

    @pytest.mark.parametrize(
        "arguments", [{"size": 0}, {"crop": 0}, {"channels": 2}, {"valid_fraction": 0.6, "test_fraction": 0.5}]
    )
    def test_bad_parameters(self, arguments: dict[str, Any], tmp_path: Path) -> None:
        fill(tmp_path)
        with pytest.raises(UsageError):
            ImageFolder(".", directory=tmp_path, **arguments)


class TestCorruptImages:
    def damaged(self, folder: Path, names: tuple[str, ...]) -> Path:
        fill(folder)
        for name in names:
            (folder / name).write_bytes(b"no image")
        return folder

    def test_they_are_named_once_and_the_next_whole_one_stands_in(self, tmp_path: Path) -> None:
        self.damaged(tmp_path, ("003.png", "011.png", "012.png"))
        data = ImageFolder(".", size=8, max_corrupt=3, directory=tmp_path)
        with pytest.warns(UserWarning, match="is skipped") as warned:
            rows = all_rows(data)
        texts = [str(w.message) for w in warned]
        assert len(texts) == 3
        for name in ("003.png", "011.png", "012.png"):
            assert sum(name in text for text in texts) == 1
        assert sum("3 of at most 3" in text for text in texts) == 1
        whole = {
            (torch.from_numpy(np.asarray(Image.open(f)).copy()).permute(2, 0, 1).float() / 127.5 - 1).numpy().tobytes()
            for f in tmp_path.glob("*.png")
            if f.name not in ("003.png", "011.png", "012.png")
        }
        assert len(rows) == 20
        assert {row.numpy().tobytes() for row in rows} == whole

    def test_rows_do_not_depend_on_the_order_of_reading(self, tmp_path: Path) -> None:
        self.damaged(tmp_path, ("003.png", "011.png", "012.png"))
        kept, unkept = (ImageFolder(".", size=8, cache_mb=mb, directory=tmp_path).split("train") for mb in (1, 0))
        with pytest.warns(UserWarning, match="is skipped"):
            forward = kept.first(99)
        with pytest.warns(UserWarning, match="is skipped"):
            backward = [unkept.batch(torch.tensor([i])) for i in reversed(range(len(unkept)))]
        assert torch.equal(forward, torch.cat(backward).flip(0))

    def test_one_too_many_is_an_error_that_names_them(self, tmp_path: Path) -> None:
        self.damaged(tmp_path, ("003.png", "011.png", "012.png"))
        data = ImageFolder(".", size=8, max_corrupt=2, directory=tmp_path)
        with (
            pytest.warns(UserWarning, match="can't be decoded"),
            pytest.raises(DataError, match=r"3 images can't be decoded, 2 are allowed: .*\.png, .*\.png, .*\.png$"),
        ):
            all_rows(data)

    def test_the_stand_in_is_of_the_same_class(self, tmp_path: Path) -> None:
        for name, value in (("ant", 5), ("zebra", 250)):
            for index in range(12):
                save(tmp_path / name / f"{index}.png", np.full((4, 4, 3), value))
        for index in range(0, 12, 2):
            (tmp_path / "ant" / f"{index}.png").write_bytes(b"")
        data = ImageFolder(".", size=4, valid_fraction=0.3, test_fraction=0.3, directory=tmp_path)
        value_of = torch.tensor([5.0, 250.0]) / 127.5 - 1
        with pytest.warns(UserWarning, match="6 of at most 10"):
            rows = {part: data.split(part).first(99) for part in PARTS}
        for part in PARTS:
            assert torch.allclose(rows[part][:, 0, 0, 0], value_of[data.labels(part)])

    def test_nothing_left_to_stand_in(self, tmp_path: Path) -> None:
        fill(tmp_path, num=3)
        for file in tmp_path.iterdir():
            file.write_bytes(b"")
        with pytest.raises(DataError, match="none of the images"), pytest.warns(UserWarning, match="is skipped"):
            all_rows(ImageFolder(".", size=8, directory=tmp_path))
        with pytest.raises(DataError, match="none of the images"), pytest.warns(UserWarning, match="is skipped"):
            ImageFolder(".", size=None, directory=tmp_path)


class TestWhatIsRead:
    def test_every_kind_of_file_is_read_in_any_case(self, tmp_path: Path) -> None:
        fill(tmp_path)
        for index, kind in enumerate(
            ("webp", "WEBP", "Jpg", "JPEG", "bmp", "gif", "tif", "TIFF", "ppm", "PNG", "jfif")
        ):
            image = Image.fromarray(np.full((8, 8, 3), 20 * index, dtype=np.uint8))
            image.save(tmp_path / f"more{index}.{kind}", {"jfif": "jpeg"}.get(kind))
        data = ImageFolder(".", size=8, directory=tmp_path)
        assert len(all_rows(data)) == 31

    def test_files_left_out_are_counted_and_said(self, tmp_path: Path) -> None:
        fill(tmp_path)
        for name in ("a.avif", "b.AVIF", "c.heic", "no-suffix", "notes.txt", "LICENSE", ".hidden.png"):
            (tmp_path / name).write_bytes(b"x")
        fill(tmp_path / "elsewhere", num=1)
        (tmp_path / "folder").mkdir()
        (tmp_path / "folder" / "link").symlink_to(tmp_path / "elsewhere")
        with pytest.warns(GebmKitWarning) as warned:
            data = ImageFolder(".", size=8, directory=tmp_path)
        first, second = (str(warning.message) for warning in warned)
        assert "left out because of their suffix: 2 .avif, 1 without a suffix, 1 .heic; read are .png, .jpg" in first
        assert "1 link(s) to folders are not followed" in second
        line = data.describe_reading()
        for words in ("21 .png", "2 .avif", "1 .heic", "1 .txt", "1 hidden", "1 link(s) to folders"):
            assert words in line
        (tmp_path / "only").mkdir()
        (tmp_path / "only" / "a.avif").write_bytes(b"x")
        with pytest.raises(DataError, match=r"holds no \.png.* file \(there are: 1 \.avif\)"):
            ImageFolder("only", directory=tmp_path)

    def test_the_line_about_what_was_read(self, tmp_path: Path) -> None:
        fill(tmp_path / "a", num=10)
        fill(tmp_path / "b", num=10, shape=(8, 8, 4))
        data = ImageFolder(".", size=8, background="black", directory=tmp_path)
        assert data.describe_reading() == (
            f"read 20 rows (train 16, valid 2, test 2) of shape 3x8x8: {tmp_path}, unsigned bytes 0..255 (modes RGB 10, "
            "RGBA 10) -> float32 in [-1, 1]; labels: 2 classes (a, b); transparency: 10 file(s), laid over black; "
            "files: 20 .png; left out: nothing"
        )

    def test_damaged_and_irregular_files_are_found_before_training(self, tmp_path: Path) -> None:
        fill(tmp_path)
        (tmp_path / "text.png").write_text("no image")
        (tmp_path / "circle.png").symlink_to(tmp_path / "circle.png")
        os.mkfifo(tmp_path / "pipe.png")
        data = ImageFolder(".", size=8, directory=tmp_path)
        with pytest.warns(UserWarning, match="is skipped"):
            line = data.describe_reading()
        assert "damaged so far: 3" in line
        assert "named pipe" in data.skipped()[str(tmp_path / "pipe.png")]
        assert len(all_rows(data)) == 23
        Image.fromarray(np.zeros((8, 8), dtype=np.uint16)).save(tmp_path / "deep.png")
        with (
            pytest.raises(DataError, match=r"deep\.png has more than 8 bits"),
            pytest.warns(UserWarning, match="skipped"),
        ):
            ImageFolder(".", size=8, directory=tmp_path).describe_reading()

    def test_the_background_is_a_parameter(self, tmp_path: Path) -> None:
        for index in range(3):
            save(tmp_path / f"{index}.png", np.full((4, 4, 4), (9, 9, 9, 0)))
        for colour, value in (("white", 1.0), ("black", -1.0)):
            rows = all_rows(ImageFolder(".", size=4, background=colour, directory=tmp_path))
            assert rows.unique().tolist() == [value]
        with pytest.raises(UsageError, match="background is a colour"):
            ImageFolder(".", background="whitish", directory=tmp_path)

    def test_names_that_are_not_utf8(self, tmp_path: Path) -> None:
        fill(tmp_path)
        with contextlib.suppress(OSError):  # some file systems refuse such names
            os.rename(tmp_path / "000.png", os.fsencode(tmp_path) + b"/\xff.png")
        assert len(all_rows(ImageFolder(".", size=8, directory=tmp_path))) == 20

    @pytest.mark.skipif(os.geteuid() == 0, reason="root reads every folder")
    def test_a_folder_that_can_t_be_read(self, tmp_path: Path) -> None:
        fill(tmp_path)
        (tmp_path / "closed").mkdir(mode=0)
        with pytest.raises(DataError, match="closed can't be read"):
            ImageFolder(".", directory=tmp_path)
