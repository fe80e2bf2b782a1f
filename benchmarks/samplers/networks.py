"""The two trained networks, which are trained once into the cache folder, exported for jax, and loaded for the kit."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import gebm_kit as gk
from gebm_kit.bases.dcgan import DcganBase
from gebm_kit.bases.mlp import MlpBase
from gebm_kit.core.model import GEBM, LatentPotential
from gebm_kit.core.progress import GebmKitWarning
from gebm_kit.energies.conv import ConvEnergy
from gebm_kit.energies.mlp import MlpEnergy

FASHION = Path("/usr/share/datasets/fashion-mnist")
DCGAN_STEPS = 300
UNEVALUATED = [
    "eval.metrics=[]",
    "sample={num_samples: 16, num_chains: 16, warmup: 0, steps: 1, thin: 1}",
    "eval.num_samples=16",
]

RECIPES = {
    "mlp": ("quickstart", UNEVALUATED),
    "dcgan": (
        "fashion_mnist",
        [
            "energy.spectral_norm=true",
            "optim.energy.lr=4.0e-4",
            "optim.base.lr=4.0e-4",
            f"train.steps={DCGAN_STEPS}",
            f"train.final.steps={DCGAN_STEPS}",
            f"train.checkpoint_every={DCGAN_STEPS}",
            *UNEVALUATED,
        ],
    ),
}


def trained(name: str, folder: Path) -> GEBM:
    """Return the network called ``name``, and train it in ``folder`` if it is missing."""
    recipe, overrides = RECIPES[name]
    if name == "dcgan" and not FASHION.is_dir():
        overrides = [*overrides, f"data={{name: image-folder, path: {enlarged_digits(folder)}, size: 28, channels: 1}}"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", GebmKitWarning)  # warnings about the evaluation, which is cut to almost nothing
        return gk.train(recipe, overrides, out=folder / name, resume=True).model


def enlarged_digits(folder: Path) -> Path:
    """Write the kit's digits as 28 x 28 PNG files, for machines without Fashion-MNIST."""
    from PIL import Image

    from gebm_kit.data.digits import Digits

    images = folder / "digits-28"
    if not images.exists():
        images.mkdir(parents=True)
        data = Digits()
        for part in ("train", "valid", "test"):
            rows = data.split(part)  # type: ignore[arg-type]
            everything, labels = rows.batch(torch.arange(len(rows))), data.labels(part)  # type: ignore[arg-type]
            for number, (row, label) in enumerate(zip(everything, labels, strict=True)):
                pixels = ((row[0] + 1) * 127.5).round().byte().numpy()
                path = images / str(int(label)) / f"{part}-{number}.png"
                path.parent.mkdir(exist_ok=True)
                Image.fromarray(pixels).resize((28, 28), Image.Resampling.BICUBIC).save(path)
    return images


def export(name: str, model: GEBM, folder: Path) -> None:
    """Write ``name.json`` with the layers of E(G(z)) in order, and ``name.npz`` with their arrays as constants."""
    with LatentPotential(model):  # eval mode
        layers, arrays = [], {}
        for number, (layer, tensors) in enumerate([*_base_layers(model.base), *_energy_layers(model.energy)]):
            names = {key: f"{number}.{key}" for key, value in tensors.items() if value is not None}
            arrays.update({names[key]: tensors[key].detach().numpy().copy() for key in names})
            layers.append({**layer, "arrays": names})
    folder.mkdir(parents=True, exist_ok=True)
    np.savez(folder / f"{name}.npz", **arrays)
    (folder / f"{name}.json").write_text(json.dumps({"layers": layers}))


Layer = tuple[dict[str, Any], dict[str, Tensor | None]]


def _base_layers(base: nn.Module) -> Iterator[Layer]:
    if isinstance(base, DcganBase):
        yield {"kind": "linear"}, {"weight": base.project.weight, "bias": None}
        yield {"kind": "to_image", "shape": list(base.first_map)}, {}
    elif not isinstance(base, MlpBase):
        raise TypeError(f"no export of {type(base).__name__}")
    yield from _sequence(base.layers)
    if base.value_range != (-1.0, 1.0):
        raise ValueError(f"no export of the range {base.value_range}")
    yield {"kind": "activation", "name": "tanh"}, {}


def _energy_layers(energy: nn.Module) -> Iterator[Layer]:
    if not isinstance(energy, ConvEnergy | MlpEnergy) or energy.data_scale != 1.0:
        raise TypeError(f"no export of {energy}")
    if isinstance(energy, MlpEnergy):
        yield {"kind": "flatten"}, {}
    yield from _sequence(energy.layers)
    if isinstance(energy, ConvEnergy):
        yield {"kind": "flatten"}, {}
    yield {"kind": "linear"}, {"weight": energy.readout.linear.weight, "bias": None}


def _sequence(layers: nn.Module) -> Iterator[Layer]:
    for layer in layers.children():
        match layer:
            case nn.Linear():
                yield {"kind": "linear"}, {"weight": layer.weight, "bias": layer.bias}
            case nn.BatchNorm1d() | nn.BatchNorm2d():
                assert layer.running_var is not None
                assert layer.running_mean is not None
                scale = layer.weight * (layer.running_var + layer.eps).rsqrt()
                yield {"kind": "affine"}, {"scale": scale, "shift": layer.bias - layer.running_mean * scale}
            case nn.ReLU():
                yield {"kind": "activation", "name": "relu"}, {}
            case nn.SiLU():
                yield {"kind": "activation", "name": "silu"}, {}
            case nn.LeakyReLU(negative_slope=0.2):
                yield {"kind": "activation", "name": "leaky-relu"}, {}
            case nn.ConvTranspose2d() | nn.Conv2d():
                kind = "transposed" if isinstance(layer, nn.ConvTranspose2d) else "convolution"
                padding = [(k - 1) // 2 for k in layer.kernel_size] if layer.padding == "same" else list(layer.padding)
                shape = {"stride": list(layer.stride), "padding": padding}
                yield {"kind": kind, **shape}, {"weight": layer.weight, "bias": layer.bias}
            case nn.Identity():
                pass
            case _:
                raise TypeError(f"no export of {layer}")
