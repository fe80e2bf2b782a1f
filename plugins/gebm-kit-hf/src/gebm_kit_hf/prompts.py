"""Prompts, encoded once by the text encoders of a pipeline.

References:
    SDXL: Improving Latent Diffusion Models for High-Resolution Image Synthesis. D. Podell et al., ICLR 2024.
    https://arxiv.org/abs/2307.01952 (two text encoders, pooled text and sizes as conditions)
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gebm_kit.core.errors import DataError, UsageError
from gebm_kit.core.progress import warn
from gebm_kit_hf.library import (
    CONFIG_FILE,
    check_numbers,
    checked_config,
    imported,
    quiet,
    read_network,
    require_folder,
    said,
    weight_files,
)

ENCODERS = ("CLIPTextModel", "CLIPTextModelWithProjection")
"""Text encoders that are read."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """What the network reads of a text.

    Attributes:
        tokens: embeddings, (1, L, D).
        pooled: embedding of the whole text, (1, P), of SDXL; None otherwise.
    """

    tokens: Tensor
    pooled: Tensor | None = None

    def zeros(self) -> Prompt:
        """Return the empty prompt of models that were trained with zeros in its place."""
        return Prompt(torch.zeros_like(self.tokens), None if self.pooled is None else torch.zeros_like(self.pooled))


class Texts:
    """The tokenizers and text encoders of a pipeline, in single precision.

    Args:
        folder: the pipeline's folder.
        double: whether the pipeline has two encoders and reads their last layer but one, as SDXL does.
        variant: variant of the weights.
        base: name of the base, for messages.

    Raises:
        DataError, UsageError: a part is missing, damaged or of another kind.
        PluginError: transformers is not installed.
    """

    def __init__(self, folder: Path, double: bool, variant: str | None, base: str) -> None:
        self._library = imported("transformers", base, "pipeline")
        self._double, self._base = double, base
        ends = [end for end in ("", "_2") if double or not end]
        if double and not (folder / "text_encoder").is_dir():
            ends = ["_2"]
        self._pairs = [
            (self._tokenizer(folder / f"tokenizer{end}"), self._encoder(folder / f"text_encoder{end}", variant))
            for end in ends
        ]

    def _tokenizer(self, folder: Path) -> Any:
        if not folder.is_dir():
            raise DataError(f"the folder {folder} does not exist", hint="The pipeline's folder is not complete.")
        try:
            with quiet():
                return self._library.CLIPTokenizer.from_pretrained(str(folder), local_files_only=True)
        except Exception as error:  # the library raises many types
            raise DataError(f"{folder} holds no tokenizer of CLIP: {said(error)}") from error

    def _encoder(self, folder: Path, variant: str | None) -> Any:
        require_folder(folder, CONFIG_FILE, self._base)
        config = checked_config(folder / CONFIG_FILE, ENCODERS, self._base, key="architectures")
        make = getattr(self._library, config["architectures"][0])
        weight_files(folder, variant)
        check_numbers(lambda: make(make.config_class(**config)), folder, "text encoder")
        options = {} if variant is None else {"variant": variant}
        return read_network(make, folder, attn_implementation="sdpa", **options).float()

    @torch.no_grad()
    def encode(self, text: str) -> Prompt:
        """Encode a text; warn if it is longer than an encoder reads."""
        tokens, pooled = [], None
        for tokenizer, encoder in self._pairs:
            ids, mask = self._ids(tokenizer, encoder, text)
            found = encoder(ids, attention_mask=mask, output_hidden_states=self._double)
            tokens.append(found.hidden_states[-2] if self._double else found[0])
            if pooled is None and found[0].ndim == 2:
                pooled = found[0]
        if self._double and pooled is None:
            raise UsageError(
                "the text encoders have no projection, which SDXL needs: text_encoder_2 must be a "
                "CLIPTextModelWithProjection"
            )
        return Prompt(torch.cat(tokens, -1), pooled if self._double else None)

    def _ids(self, tokenizer: Any, encoder: Any, text: str) -> tuple[Tensor, Tensor | None]:
        longest = min(int(tokenizer.model_max_length), int(encoder.config.max_position_embeddings))
        with quiet():
            found = tokenizer(text, padding="max_length", max_length=longest, truncation=True, return_tensors="pt")
            whole = tokenizer(text, truncation=False).input_ids
        if len(whole) > longest:
            warn(f"the prompt has {len(whole)} tokens, and the text encoder reads the first {longest}")
        if int(found.input_ids.max()) >= int(encoder.config.vocab_size):
            raise DataError("the tokenizer has more words than the text encoder knows: they belong to other models")
        masked = bool(getattr(encoder.config, "use_attention_mask", False)) and not self._double
        return found.input_ids, found.attention_mask if masked else None
