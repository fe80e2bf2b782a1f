"""Environment of these tests: one thread, a separate cache, no other plugin, and weights of the true format."""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from gebm_kit.core.plugins import installed

torch.set_num_threads(1)
for _name in [name for name in os.environ if name.startswith("GEBM_KIT_")]:
    del os.environ[_name]


def _declare_operators() -> torch.library.Library | None:
    """Declare two operators that torchvision may miss, so that these tests run on either build of torch.

    PyPI's torchvision is compiled for CUDA builds of torch. With a CPU build its compiled half can't be loaded, and its
    Python half fails on two operators that it expects from there. Inception uses neither.
    """
    place = find_spec("torchvision")
    assert place is not None, "make test-inception makes an environment with torchvision"
    assert place.submodule_search_locations is not None
    try:
        torch.ops.load_library(str(Path(place.submodule_search_locations[0]) / "_C.so"))
    except OSError:
        library = torch.library.Library("torchvision", "DEF")
        for name in ("nms", "qnms"):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        return library
    return None


_OPERATORS = _declare_operators()


class Weights:
    """A weights file: its path and its SHA-256."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.sha256 = hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Weights:
    """Make a file with every tensor of the standard file (names, shapes, format) and random values."""
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    nothing = io.BytesIO()
    torch.save({}, nothing)
    nothing.seek(0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FeatureExtractorInceptionV3, "load_state_dict", lambda self, state: None)
        torch.manual_seed(0)
        network = FeatureExtractorInceptionV3("random", ["2048"], feature_extractor_weights_path=nothing)
    state = network.state_dict()
    for name, tensor in state.items():
        # scales like a trained network's, so that features neither vanish nor explode
        if name.endswith("conv.weight"):
            tensor.normal_(0.0, (2.0 / tensor[0].numel()) ** 0.5)
        elif name == "fc.weight":
            tensor.normal_(0.0, 0.1)
    path = tmp_path_factory.mktemp("weights") / "weights-inception-2015-12-05-6726825d.pth"
    torch.save(state, path)
    return Weights(path)


@pytest.fixture(autouse=True)
def _this_plugin_alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    monkeypatch.setenv("GEBM_KIT_LOAD_PLUGINS", "gebm-kit-inception")
    monkeypatch.setenv("GEBM_KIT_STRICT_PLUGINS", "1")
    monkeypatch.setenv("GEBM_KIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    installed.cache_clear()
    yield
    monkeypatch.undo()
    installed.cache_clear()
