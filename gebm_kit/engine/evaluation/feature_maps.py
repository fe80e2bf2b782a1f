"""Feature maps by name: built through the registry, fitted to the dataset once, with their results cached."""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from gebm_kit.config.build import build
from gebm_kit.config.schema import ComponentNode
from gebm_kit.config.supplied import SuppliedNode
from gebm_kit.core.cache import cache_directory
from gebm_kit.core.errors import GebmKitError, UsageError
from gebm_kit.core.files import make_directory, write_atomic
from gebm_kit.core.interfaces import Dataset, FeatureMap, HasLogits, Metric, ReportsFit
from gebm_kit.core.plugins import component_name, installed
from gebm_kit.core.progress import OnProgress, Progress, ignore

if TYPE_CHECKING:
    from gebm_kit.config.schema import Recipe


REMEMBERED = 4
"""Tensors whose features are kept in memory: the reference, the training data and the latest sets of draws.
Metrics with the same feature map share them."""


@dataclass(frozen=True, slots=True)
class FeatureSettings:
    """Parameters of feature maps.

    Attributes:
        nodes: maps with parameters, from the recipe key ``eval.features``; all other maps have their defaults.
        directory: the directory that relative paths among the parameters start from; None: the current directory.
    """

    nodes: tuple[ComponentNode, ...] = ()
    directory: Path | None = None

    @classmethod
    def of(cls, recipe: Recipe | None) -> FeatureSettings:
        """Return a recipe's settings; the defaults without a recipe."""
        return cls() if recipe is None else cls(recipe.eval.features, recipe.directory)

    def build(self, name: str, device: torch.device) -> FeatureMap:
        """Build the map that metrics call ``name``, without fitting it.

        Raises:
            RecipeError, PluginError: no installed feature map has this name.
            UsageError: ``eval.features`` lists it twice.
        """
        registry = installed().registry
        record = registry.get("features", name)
        chosen = [node for node in self.nodes if registry.get("features", _name_of(node)) == record]
        if len(chosen) > 1:
            raise UsageError(f"eval.features lists {name!r} twice; list each feature map once")
        node = chosen[0] if chosen else ComponentNode(name)
        built: FeatureMap = build("features", node, {"device": device, "directory": self.directory or Path.cwd()})
        return built

    def check(self, metrics: Iterable[Metric], dataset: Dataset) -> None:
        """Check the maps that metrics name against the dataset, before anything is trained or drawn.

        Raises:
            UsageError, PluginError: a map does not work on the dataset, or lacks a file or package that it needs.
        """
        names = dict.fromkeys(getattr(metric, "features", "auto") for metric in metrics)
        for name in names:
            if isinstance(name, FeatureMap):
                name.check(dataset)
            elif isinstance(name, str) and name != "auto":
                self.build(name, torch.device("cpu")).check(dataset)


def _name_of(node: ComponentNode) -> str:
    return component_name("features", node.given) if isinstance(node, SuppliedNode) else node.name


class FeatureMaps:
    """``features(name)`` for metrics (see `EvalContext`).

    Args:
        dataset: the dataset that maps are fitted to.
        device: the device that maps compute on.
        settings: parameters of the maps.
        constant: data that is the same at every evaluation; its features are cached on disk.
        on_progress: called while maps that learn are fitted.
    """

    def __init__(
        self,
        dataset: Dataset,
        device: torch.device,
        settings: FeatureSettings | None = None,
        constant: Sequence[Tensor] = (),
        on_progress: OnProgress = ignore,
    ) -> None:
        self._dataset, self._device, self._on_progress = dataset, device, on_progress
        self._settings, self._constant = settings or FeatureSettings(), constant
        self._fitted: dict[str | FeatureMap, FeatureMap] = {}

    def __call__(self, name: str | FeatureMap) -> FeatureMap:
        """Return the fitted map that is called ``name``, or the caller's own, fitted.

        Raises:
            RecipeError, PluginError: no installed feature map has this name.
            UsageError: it can't be fitted to this dataset.
        """
        if name not in self._fitted:
            built = name if isinstance(name, FeatureMap) else self._settings.build(name, self._device)
            called = component_name("features", built) if isinstance(name, FeatureMap) else name
            if isinstance(built, ReportsFit):
                built.on_step = lambda step, total: self._on_progress(Progress("fit", step, total))
            built.fit(self._dataset, self._device)
            kind = _RememberingClasses if isinstance(built, HasLogits) else _Remembering
            self._fitted[name] = kind(called, built, self._constant)
        return self._fitted[name]


class _Remembering(FeatureMap):
    """A feature map that keeps the features of the last few tensors, by identity, and caches constant data on disk."""

    def __init__(self, name: str, inner: FeatureMap, constant: Sequence[Tensor]) -> None:
        self._name, self._inner, self._constant = name, inner, constant
        self.checksum, self.resize = inner.checksum, inner.resize
        self._known: list[tuple[Tensor, Tensor]] = []

    def fit(self, dataset: Dataset, device: torch.device) -> None:
        self._inner.fit(dataset, device)
        self.checksum, self._known = self._inner.checksum, []

    def __call__(self, x: Tensor) -> Tensor:
        for place, (seen, features) in enumerate(self._known):
            if seen is x:
                self._known.append(self._known.pop(place))  # the least recently used one is forgotten first
                return features
        on_disk = self._inner.cached and any(x is tensor for tensor in self._constant)
        features = features_of(self._name, self._inner, x) if on_disk else self._inner(x)
        self._known = [*self._known[1 - REMEMBERED :], (x, features)]
        return features


class _RememberingClasses(_Remembering):
    """A remembering feature map that has class logits too."""

    def logits(self, features: Tensor) -> Tensor:
        assert isinstance(self._inner, HasLogits)
        return self._inner.logits(features)


CACHE_VERSION = 1
"""The version of the files that hold cached features; raise it whenever their content changes."""


ROWS_HASHED_AT_ONCE = 1024
"""Rows hashed at a time, which bounds the copy of them on the CPU."""


def features_of(name: str, features: FeatureMap, x: Tensor) -> Tensor:
    """Return ``features(x)``, from the cache if it holds them; (N, *D) -> (N, F)."""
    key = _key(name, features, x)
    path = cache_directory() / f"features-{key[:32]}.safetensors"
    found = _load(path, key, len(x))
    if found is None:
        found = features(x)
        _store(path, key, found)
    return found.to(x.device)


def _key(name: str, features: FeatureMap, x: Tensor) -> str:
    facts = {
        "version": CACHE_VERSION, "features": name, "checksum": features.checksum, "resize": features.resize,
        "shape": list(x.shape), "dtype": str(x.dtype), "device": x.device.type,
    }  # fmt: skip
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
    for block in x.split(ROWS_HASHED_AT_ONCE):
        digest.update(_bytes(block))
    return digest.hexdigest()


def _load(path: Path, key: str, rows: int) -> Tensor | None:
    """Load the features stored under ``key``; None without a file, or with a warning when it is damaged."""
    try:
        if not path.is_file():
            return None
        with safe_open(path, framework="pt") as archive:
            metadata = archive.metadata() or {}
            found: Tensor = archive.get_tensor("features")
    except (OSError, SafetensorError) as error:
        warnings.warn(f"the cached features {path} can't be read ({error}); they are computed again", stacklevel=3)
        return None
    sound = found.ndim == 2 and len(found) == rows and metadata.get("sha256") == _checksum(found)
    if metadata.get("key") != key or not sound:
        warnings.warn(f"the cached features {path} do not match their checksum; they are computed again", stacklevel=3)
        return None
    return found


def _store(path: Path, key: str, features: Tensor) -> None:
    tensor = features.detach().cpu().contiguous()
    try:
        make_directory(path.parent)
        write_atomic(path, save({"features": tensor}, {"key": key, "sha256": _checksum(tensor)}))
    except GebmKitError as error:
        warnings.warn(
            f"features of the reference could not be cached ({error}); they will be computed again next time. "
            "Set GEBM_KIT_CACHE to a directory that can be written.",
            stacklevel=3,
        )


def _checksum(tensor: Tensor) -> str:
    return hashlib.sha256(_bytes(tensor)).hexdigest()


def _bytes(tensor: Tensor) -> bytes:
    return tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes()
