"""Pictures: what they show, how they treat odd input, and that matplotlib's global state stays untouched."""

import math
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from gebm_kit.bases.mlp import MlpBase
from gebm_kit.bases.vae import Vae
from gebm_kit.core.errors import UsageError
from gebm_kit.core.interfaces import Energy
from gebm_kit.core.model import GEBM
from gebm_kit.energies.mlp import MlpEnergy
from gebm_kit.engine.figures import plotting, run_figures as figures


class Bowl(Energy):
    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1).square().sum(1)


def draws(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def pixels(path) -> np.ndarray:
    """Read a picture as (height, width, 3); fails for a truncated file or another format."""
    with Image.open(path) as image:
        assert image.format == "PNG"
        return np.asarray(image.convert("RGB"))


def series(num: int) -> list[dict]:
    return [
        {"step": 10 * i, "kale": math.sin(i), "energy_loss": -math.sin(i), "base_loss": 1.0, "log_partition": 0.1 * i}
        for i in range(num)
    ]


class TestImageGrid:
    @pytest.mark.parametrize("channels", [1, 2, 3, 5])
    @pytest.mark.parametrize("size", [(8, 8), (4, 20), (1, 1)])
    def test_any_channels_and_size(self, tmp_path, channels, size):
        rows = {
            "data": draws(70, channels, *size),
            "base": draws(3, channels, *size),
            "GEBM": draws(64, channels, *size),
        }
        path = figures.image_grid(tmp_path / "grid.png", rows, None)
        assert path == tmp_path / "grid.png"
        assert pixels(path).std() > 0

    def test_values_are_mapped_to_the_range(self):
        images = torch.tensor([-1.0, 0.0, 1.0]).reshape(3, 1, 1, 1).numpy()
        mosaic = figures.mosaic(images, (-1.0, 1.0))
        assert mosaic.shape == (1, 5)
        assert mosaic.tolist() == [[0.0, 1.0, 0.5, 1.0, 1.0]]  # a white pixel between the images

    def test_colours_and_order(self):
        images = np.zeros((9, 3, 2, 2))
        images[8, 0] = 1.0  # the ninth image, all red, begins the second line
        mosaic = figures.mosaic(images, (0.0, 1.0))
        assert mosaic.shape == (5, 8 * 3 - 1, 3)
        assert mosaic[3, 0].tolist() == [1.0, 0.0, 0.0]

    def test_values_that_are_not_finite(self, tmp_path):
        images = draws(4, 1, 8, 8)
        images[0], images[1], images[2] = math.nan, math.inf, -math.inf
        pixels(figures.image_grid(tmp_path / "grid.png", {"data": images}, None))
        mosaic = figures.mosaic(images.numpy(), (0.0, 1.0))
        assert np.isfinite(mosaic).all()


class TestPointClouds:
    def test_three_panels_with_points_on_contours(self, tmp_path):
        data = draws(500, 2)
        path = figures.point_clouds(tmp_path / "clouds.png", data, 2 * data, data + 0.1, Bowl())
        picture = pixels(path).reshape(-1, 3).astype(int)
        red = (picture[:, 0] - picture[:, 2] > 60).mean()
        blue = (picture[:, 2] - picture[:, 0] > 60).mean()
        assert red > 0.001
        assert blue > 0.02

    @pytest.mark.parametrize("kind", ["nan", "far", "one", "flat energy", "nan energy"])
    def test_odd_input(self, tmp_path, kind):
        data, base, energy = draws(50, 2), draws(50, 2, seed=1), Bowl()
        if kind == "nan":
            base[0], base[1, 0] = math.nan, math.inf
        elif kind == "far":
            base[0] = 1e9
            assert figures.cloud_limits([data.numpy(), base[1:].numpy()], 0)[1] < 10
        elif kind == "one":
            data = base = torch.ones(1, 2)
        elif kind == "flat energy":
            energy.forward = lambda x: torch.zeros(len(x))
        else:
            energy.forward = lambda x: torch.full((len(x),), math.nan)
        pixels(figures.point_clouds(tmp_path / "clouds.png", data, base, data, energy))

    def test_limits_hold_all_data_and_not_the_stray_draws(self):
        data, base = draws(1000, 2).numpy(), draws(1000, 2, seed=1).numpy()
        base[0] = 1e6
        low, high = figures.cloud_limits([data, base], 0)
        assert low < data[:, 0].min() < data[:, 0].max() < high < 100


class TestCurves:
    @pytest.mark.parametrize("num", [1, 2, 49, 50, 1000])
    def test_any_number_of_points(self, tmp_path, num):
        pixels(figures.curves(tmp_path / "curves.png", series(num)))

    def test_nulls_gaps_and_missing_names(self, tmp_path):
        rows = series(200)
        for row in rows[50:100]:
            row["kale"] = None
        for row in rows[20:]:
            del row["log_partition"]
        rows[7]["energy_loss"] = math.nan
        rows.append({"step": 2000, "gebm.frechet": 1.0, "kale_test": 0.4})
        pixels(figures.curves(tmp_path / "curves.png", rows))
        steps, values = figures.series(rows, "kale")
        assert len(steps) == 200
        assert np.isnan(values).sum() == 50

    @pytest.mark.parametrize("rows", [[], [{"step": 1}], [{"step": 1, "kale": None}], [{"kale": 0.5}]])
    def test_nothing_to_draw(self, tmp_path, rows):
        pixels(figures.curves(tmp_path / "curves.png", rows))

    def test_block_medians_ignore_a_spike(self):
        values = np.ones(100)
        values[33], values[50] = 1e6, np.nan
        steps, medians = plotting.block_medians(np.arange(100.0), values)
        assert (medians == 1.0).all()
        assert len(steps) == len(medians) == 12


class TestEnergyHistogram:
    @pytest.mark.parametrize("kind", ["spread", "one value", "nan", "empty", "huge"])
    def test_odd_input(self, tmp_path, kind):
        values = {
            "spread": draws(500),
            "one value": torch.full((500,), 3.0),
            "nan": torch.full((500,), math.nan),
            "empty": torch.zeros(0),
            "huge": torch.cat([draws(500), torch.tensor([1e30, math.inf])]),
        }[kind]
        picture = pixels(figures.energy_histogram(tmp_path / "hist.png", values, draws(100), values))
        assert picture.std() > 0

    def test_all_of_them_empty(self, tmp_path):
        pixels(figures.energy_histogram(tmp_path / "hist.png", *[torch.zeros(0)] * 3))


class TestDrawAll:
    @pytest.mark.parametrize(
        ("shape", "names"),
        [
            ((2,), ["clouds.png", "energies.png", "curves.png"]),
            ((1, 8, 8), ["samples.png", "energies.png", "curves.png"]),
            ((10,), ["energies.png", "curves.png"]),
        ],
    )
    def test_it_chooses_what_fits_and_leaves_the_model_as_it_was(self, tmp_path, shape, names):
        model = GEBM(MlpBase(4, [8], data_shape=shape), MlpEnergy([8], spectral_norm=True, data_shape=shape)).train()
        before = {name: tensor.clone() for name, tensor in model.energy.state_dict().items()}
        x = draws(20, *shape)
        paths = figures.draw_all(
            tmp_path / "figures", model=model, data=x, base=x, gebm=x, value_range=None, rows=series(3)
        )
        assert [path.name for path in paths] == names
        assert sorted(p.name for p in (tmp_path / "figures").iterdir()) == sorted(names)  # and no temporary file
        for path in paths:
            pixels(path)
        assert all(module.training for module in model.modules())
        assert all(p.requires_grad for p in model.parameters())
        assert all(torch.equal(before[name], tensor) for name, tensor in model.energy.state_dict().items())

    def test_an_encoder_gives_reconstructions(self, tmp_path):
        vae = Vae(3, hidden=[8], data_shape=(1, 8, 8), value_range=(-1.0, 1.0)).train()
        x = draws(20, 1, 8, 8)
        model = GEBM(vae, MlpEnergy([8], data_shape=(1, 8, 8)))
        paths = figures.draw_all(tmp_path, model=model, data=x, base=x, gebm=x, value_range=(-1.0, 1.0))
        assert [path.name for path in paths] == ["samples.png", "reconstructions.png", "energies.png"]
        pixels(paths[1])
        assert vae.training

    def test_without_rows_there_are_no_curves(self, tmp_path):
        model = GEBM(MlpBase(4, [8], data_shape=(2,)), MlpEnergy([8], data_shape=(2,)).double())  # another precision
        x = draws(20, 2)
        paths = figures.draw_all(tmp_path, model=model, data=x, base=x, gebm=x)
        assert [path.name for path in paths] == ["clouds.png", "energies.png"]

    def test_a_place_that_cannot_be_written(self, tmp_path):
        (tmp_path / "file").write_text("")
        model = GEBM(MlpBase(4, [8], data_shape=(2,)), MlpEnergy([8], data_shape=(2,)))
        x = draws(20, 2)
        with pytest.raises(UsageError, match="can't be written"):
            figures.draw_all(tmp_path / "file" / "figures", model=model, data=x, base=x, gebm=x)


def test_no_pyplot():
    program = "import sys, gebm_kit.engine.figures.run_figures; sys.exit('matplotlib.pyplot' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
