"""The vision transformer of DINOv2, for its published weights."""

from __future__ import annotations

import re

import torch
from torch import Tensor, nn
from torch.nn import functional

HEAD = 64
"""Channels of an attention head, in all published sizes."""

EPSILON = 1e-6
"""The constant in the denominators of layer normalisation."""

OFFSET = 0.1
"""Added to the number of patches of a side when positions are interpolated, as the authors do for these weights."""


class VisionTransformer(nn.Module):
    """``f(x)``: the class token after all blocks and the last normalisation; (N, 3, H, W) -> (N, F).

    A block adds ``g_1 * attention(norm(x))`` and then ``g_2 * mlp(norm(x))`` to the tokens x, with a learned scale g for
    each channel. Positions are stored for the images of training, and interpolated (bicubic) to others. Names of parameters
    are those of the published files.

    Args:
        width: channels F of a token.
        depth: number of blocks.
        patch: side of a patch in pixels.
        positions: number of stored positions, that of the class token included.
        hidden: channels inside an MLP.
        gated: whether the MLP is a SwiGLU, as in the largest model, or has a GELU.

    References:
        An Image is Worth 16x16 Words: Transformers for Image Recognition at Scale. A. Dosovitskiy et al., ICLR 2021.
        https://arxiv.org/abs/2010.11929
        DINOv2: Learning Robust Visual Features without Supervision. M. Oquab et al., TMLR 2024.
        https://arxiv.org/abs/2304.07193
    """

    def __init__(self, width: int, depth: int, patch: int, positions: int, hidden: int, gated: bool) -> None:
        super().__init__()
        self.patch = patch
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(torch.zeros(1, positions, width))
        self.mask_token = nn.Parameter(torch.zeros(1, width))  # for training alone, but part of the published files
        self.patch_embed = nn.ModuleDict({"proj": nn.Conv2d(3, width, patch, patch)})
        self.blocks = nn.ModuleList(Block(width, hidden, gated) for _ in range(depth))
        self.norm = nn.LayerNorm(width, EPSILON)

    @classmethod
    def of(cls, state: dict[str, Tensor]) -> VisionTransformer:
        """Build the network that these weights belong to.

        Raises:
            KeyError, ValueError, RuntimeError: they belong to a network of another kind.
        """
        depth = len({name.split(".")[1] for name in state if re.match(r"blocks\.\d+\.", name)})
        gated = "blocks.0.mlp.w3.weight" in state
        hidden = state[f"blocks.0.mlp.{'w3' if gated else 'fc2'}.weight"].shape[1]
        width, _, patch, _ = state["patch_embed.proj.weight"].shape
        positions = state["pos_embed"].shape[1]
        if width % HEAD or round((positions - 1) ** 0.5) ** 2 != positions - 1:
            raise ValueError(f"{width} channels in heads of {HEAD}, or {positions - 1} positions in a square")
        built = cls(width, depth, patch, positions, hidden, gated)
        built.load_state_dict(state)
        return built

    def forward(self, x: Tensor) -> Tensor:
        """Return the class token; (N, 3, H, W) -> (N, F)."""
        patches = self.patch_embed["proj"](x)
        rows, columns = patches.shape[2:]
        tokens = torch.cat([self.cls_token.expand(len(x), -1, -1), patches.flatten(2).mT], 1)
        tokens = tokens + self._positions(rows, columns)
        for block in self.blocks:
            tokens = block(tokens)
        found: Tensor = self.norm(tokens[:, 0])
        return found

    def _positions(self, rows: int, columns: int) -> Tensor:
        """Return the positions of the class token and of a grid of patches, (1, 1 + rows * columns, F)."""
        side = round((self.pos_embed.shape[1] - 1) ** 0.5)
        if (rows, columns) == (side, side):
            return self.pos_embed
        grid = self.pos_embed[:, 1:].reshape(1, side, side, -1).permute(0, 3, 1, 2)
        scale = ((rows + OFFSET) / side, (columns + OFFSET) / side)
        grid = functional.interpolate(grid, scale_factor=scale, mode="bicubic")
        return torch.cat([self.pos_embed[:, :1], grid.flatten(2).mT], 1)


class Block(nn.Module):
    """Attention and an MLP, each added to the tokens with a scale for each channel; (N, T, F) -> (N, T, F)."""

    def __init__(self, width: int, hidden: int, gated: bool) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width, EPSILON), nn.LayerNorm(width, EPSILON)
        self.attn = nn.ModuleDict({"qkv": nn.Linear(width, 3 * width), "proj": nn.Linear(width, width)})
        self.ls1, self.ls2 = (nn.ParameterDict({"gamma": nn.Parameter(torch.ones(width))}) for _ in range(2))
        layers = {"w12": nn.Linear(width, 2 * hidden), "w3": nn.Linear(hidden, width)} if gated else {
            "fc1": nn.Linear(width, hidden), "fc2": nn.Linear(hidden, width)
        }  # fmt: skip
        self.mlp, self._gated = nn.ModuleDict(layers), gated

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.ls1["gamma"] * self._attention(self.norm1(x))
        return x + self.ls2["gamma"] * self._mlp(self.norm2(x))

    def _attention(self, x: Tensor) -> Tensor:
        num, tokens, width = x.shape
        query, key, value = self.attn["qkv"](x).reshape(num, tokens, 3, width // HEAD, HEAD).permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(query, key, value)
        found: Tensor = self.attn["proj"](mixed.transpose(1, 2).reshape(num, tokens, width))
        return found

    def _mlp(self, x: Tensor) -> Tensor:
        if self._gated:
            gate, inner = self.mlp["w12"](x).chunk(2, dim=-1)
            found: Tensor = self.mlp["w3"](functional.silu(gate) * inner)
        else:
            found = self.mlp["fc2"](functional.gelu(self.mlp["fc1"](x)))
        return found
