"""Evaluation in jax of the networks that `networks.export` wrote."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

ACTIVATIONS: dict[str, Callable[[Any], Any]] = {
    "relu": jax.nn.relu,
    "leaky-relu": lambda x: jax.nn.leaky_relu(x, 0.2),
    "silu": jax.nn.silu,
    "tanh": jnp.tanh,
}
IMAGES, KERNELS = "NHWC", "HWIO"  # the layout for which XLA optimises convolutions on a CPU


def load(path: Path) -> Callable[[Any], Any]:
    """Load ``z (d,) -> E(G(z)) ()`` from the layers in ``path.json`` and the arrays in ``path.npz``."""
    layers = json.loads(path.with_suffix(".json").read_text())["layers"]
    dtype = jnp.float64 if jax.config.jax_enable_x64 else jnp.float32
    with np.load(path.with_suffix(".npz")) as arrays:
        steps = [_layer(layer, {k: arrays[v].astype(dtype) for k, v in layer["arrays"].items()}) for layer in layers]

    def evaluate(z: Any) -> Any:
        for step in steps:
            z = step(z)
        return z.reshape(())

    return evaluate


def _layer(layer: dict[str, Any], arrays: dict[str, np.ndarray]) -> Callable[[Any], Any]:
    """Apply one layer to one point: a vector (f,) or an image (h, w, c)."""
    match layer["kind"]:
        case "linear":
            weight, bias = arrays["weight"].T.copy(), arrays.get("bias", 0.0)
            return lambda x: x @ weight + bias
        case "affine":  # along the last axis, which has the features of a vector or the channels of an image
            return lambda x: x * arrays["scale"] + arrays["shift"]
        case "activation":
            return ACTIVATIONS[layer["name"]]
        case "to_image":
            return lambda x: jnp.moveaxis(x.reshape(layer["shape"]), 0, -1)
        case "flatten":
            return lambda x: jnp.moveaxis(x, -1, 0).reshape(-1) if x.ndim == 3 else x.reshape(-1)
        case "convolution":
            return _convolution(layer, arrays)
        case "transposed":
            return _transposed(layer, arrays)
    raise ValueError(f"layer {layer['kind']!r}")


def _convolution(layer: dict[str, Any], arrays: dict[str, np.ndarray]) -> Callable[[Any], Any]:
    kernel = arrays["weight"].transpose(2, 3, 1, 0).copy()  # (out, in, h, w) -> (h, w, in, out)
    bias = arrays.get("bias", 0.0)
    padding = [(p, p) for p in layer["padding"]]

    def apply(x: Any) -> Any:
        dimensions = (IMAGES, KERNELS, IMAGES)
        return (
            jax.lax.conv_general_dilated(x[None], kernel, layer["stride"], padding, dimension_numbers=dimensions)[0]
            + bias
        )

    return apply


def _transposed(layer: dict[str, Any], arrays: dict[str, np.ndarray]) -> Callable[[Any], Any]:
    """Compute torch's transposed convolution, as a convolution of the stride-dilated image with the flipped kernel."""
    kernel = arrays["weight"][:, :, ::-1, ::-1].transpose(2, 3, 0, 1).copy()  # (in, out, h, w) -> (h, w, in, out)
    bias = arrays.get("bias", 0.0)
    padding = [(size - 1 - p, size - 1 - p) for size, p in zip(kernel.shape[:2], layer["padding"], strict=True)]

    def apply(x: Any) -> Any:
        return jax.lax.conv_general_dilated(
            x[None], kernel, (1, 1), padding, lhs_dilation=layer["stride"], dimension_numbers=(IMAGES, KERNELS, IMAGES)
        )[0] + bias  # fmt: skip

    return apply
