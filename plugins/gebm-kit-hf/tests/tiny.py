"""Tiny pipelines with random weights, made by diffusers' own classes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import diffusers
import torch

WORDS = ["<|startoftext|>", "<|endoftext|>", *(c + end for end in ("", "</w>") for c in "abcdefghijklmnopqrstuvwxyz,")]


def tokenizer(folder: Path) -> Any:
    """Write a tokenizer of letters, and read it back."""
    import transformers

    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps({word: n for n, word in enumerate(WORDS)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    ends = {"bos_token": WORDS[0], "eos_token": WORDS[1], "unk_token": WORDS[1], "pad_token": WORDS[1]}
    settings = {"tokenizer_class": "CLIPTokenizer", "model_max_length": 12, **ends}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return transformers.CLIPTokenizer.from_pretrained(str(folder))


def encoder(projected: bool, width: int = 16) -> Any:
    import transformers

    config = transformers.CLIPTextConfig(
        vocab_size=len(WORDS), hidden_size=width, intermediate_size=20, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=12, projection_dim=8, bos_token_id=0, eos_token_id=1, pad_token_id=1,
    )  # fmt: skip
    make = transformers.CLIPTextModelWithProjection if projected else transformers.CLIPTextModel
    return make(config).eval()


def unet(wide: int, **options: Any) -> Any:
    return diffusers.UNet2DConditionModel(
        sample_size=4, in_channels=4, out_channels=4, layers_per_block=1, block_out_channels=(8, 8), norm_num_groups=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=wide, attention_head_dim=4, **options,
    ).eval()  # fmt: skip


def vae() -> Any:
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    return diffusers.AutoencoderKL(
        in_channels=3, out_channels=3, block_out_channels=(8, 8), layers_per_block=1, latent_channels=4, norm_num_groups=4,
        scaling_factor=0.2, **blocks,
    ).eval()  # fmt: skip


def stable_diffusion(folder: Path, scheduler: Any = None) -> Any:
    torch.manual_seed(0)
    made = diffusers.StableDiffusionPipeline(
        vae=vae(), text_encoder=encoder(False), tokenizer=tokenizer(folder / "made"), unet=unet(16),
        scheduler=scheduler or diffusers.EulerDiscreteScheduler(timestep_spacing="trailing"),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip
    made.save_pretrained(folder)
    return made


def sdxl(folder: Path, **options: Any) -> Any:
    torch.manual_seed(1)
    conditions = {"addition_embed_type": "text_time", "addition_time_embed_dim": 4}
    conditions |= {"projection_class_embeddings_input_dim": 8 + 6 * 4, "transformer_layers_per_block": (1, 1)}
    made = diffusers.StableDiffusionXLPipeline(
        vae=vae(), text_encoder=encoder(False, 16), text_encoder_2=encoder(True, 12), tokenizer=tokenizer(folder / "made"),
        tokenizer_2=tokenizer(folder / "made"), unet=unet(28, **conditions), add_watermarker=False,
        scheduler=diffusers.EulerAncestralDiscreteScheduler(timestep_spacing="trailing"), **options,
    )  # fmt: skip
    made.save_pretrained(folder)
    return made


def lcm(folder: Path) -> Any:
    torch.manual_seed(2)
    made = diffusers.LatentConsistencyModelPipeline(
        vae=vae(), text_encoder=encoder(False), tokenizer=tokenizer(folder / "made"), unet=unet(16, time_cond_proj_dim=6),
        scheduler=diffusers.LCMScheduler(), safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip
    made.save_pretrained(folder)
    return made


def consistency(folder: Path, classes: int | None = None) -> Any:
    torch.manual_seed(3)
    network = diffusers.UNet2DModel(
        sample_size=8, in_channels=3, out_channels=3, layers_per_block=1, block_out_channels=(8, 8), norm_num_groups=4,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"), up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=4, num_class_embeds=classes,
    ).eval()  # fmt: skip
    made = diffusers.ConsistencyModelPipeline(unet=network, scheduler=diffusers.CMStochasticIterativeScheduler())
    made.save_pretrained(folder)
    return made
