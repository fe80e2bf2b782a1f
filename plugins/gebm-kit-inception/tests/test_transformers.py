"""CLIP's and DINOv2's features: they equal torch-fidelity's, their files are verified and read as data, metrics use them."""

from __future__ import annotations

import hashlib
import io
import json
import math
import pickle
import shutil
import subprocess
import sys
import warnings
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch_fidelity
from torch import Tensor, nn
from torch.nn import functional
from torch_fidelity.feature_extractor_clip import MODEL_METADATA, FeatureExtractorCLIP
from torch_fidelity.feature_extractor_dinov2 import FeatureExtractorDinoV2

from gebm_kit.cli.app import main
from gebm_kit.core.components import parameters
from gebm_kit.core.errors import DataError, PluginError, UsageError
from gebm_kit.core.interfaces import EvalContext, FeatureMap, SplitName
from gebm_kit.core.plugins import installed
from gebm_kit.core.seeds import stream
from gebm_kit.data.tensors import TensorDataset
from gebm_kit.metrics.cmmd import Cmmd
from gebm_kit.metrics.frechet import Fid
from gebm_kit_inception import clip, dinov2, torchscript
from gebm_kit_inception.clip import Clip
from gebm_kit_inception.dinov2 import Dinov2
from gebm_kit_inception.vision_transformer import VisionTransformer

ROOT = Path(__file__).parents[3]
CPU = torch.device("cpu")


class Images(TensorDataset):
    def __init__(
        self, shape: tuple[int, ...] = (3, 16, 16), value_range: tuple[float, float] | None = (-1.0, 1.0)
    ) -> None:
        parts: dict[SplitName, Tensor] = {part: torch.zeros(2, *shape) for part in ("train", "valid", "test")}
        self._fill(parts, value_range=value_range)


class Bytes(torch.utils.data.Dataset[Tensor]):
    """Images in the form that torch-fidelity takes."""

    def __init__(self, images: Tensor) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Tensor:
        return self.images[index]


def images(num: int, seed: int = 0, shape: tuple[int, ...] = (3, 16, 16)) -> Tensor:
    """Return random bytes on a coarse grid, so that images differ by more than noise."""
    rng = np.random.default_rng(seed)
    coarse = torch.from_numpy(rng.integers(0, 256, (num, shape[0], 4, 4), dtype=np.uint8))
    return coarse.repeat_interleave(shape[1] // 4, 2).repeat_interleave(shape[2] // 4, 3)


def as_data(image: Tensor) -> Tensor:
    return image.float() / 127.5 - 1.0


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def filled(shapes: dict[str, tuple[int, ...]], seed: int = 0) -> dict[str, Tensor]:
    """Return random weights of a transformer that neither vanish nor explode."""
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for name, shape in shapes.items():
        fan = math.prod(shape[1:]) if len(shape) > 1 else 25
        state[name] = torch.randn(shape, generator=generator) / math.sqrt(fan)
        if name.split(".")[-1] in ("gamma", "weight") and len(shape) == 1:
            state[name] += 1.0
        if name.endswith("running_var"):
            state[name] = state[name].abs() + 0.5
    return state


# --- CLIP ---

TEXT = {
    "token_embedding.weight": (11, 8), "positional_embedding": (5, 8), "text_projection": (8, 24),
    "ln_final.weight": (8,), "transformer.resblocks.0.attn.in_proj_weight": (24, 8), "logit_scale": (),
}  # fmt: skip


def vit_state(width: int = 64, depth: int = 2, patch: int = 8, side: int = 32, out: int = 24) -> dict[str, Tensor]:
    shapes: dict[str, tuple[int, ...]] = {
        "visual.class_embedding": (width,), "visual.positional_embedding": ((side // patch) ** 2 + 1, width),
        "visual.proj": (width, out), "visual.conv1.weight": (width, 3, patch, patch),
    }  # fmt: skip
    for name in ("ln_pre", "ln_post"):
        shapes |= {f"visual.{name}.weight": (width,), f"visual.{name}.bias": (width,)}
    for layer in range(depth):
        block = f"visual.transformer.resblocks.{layer}"
        sizes: dict[str, tuple[int, ...]] = {
            "attn.in_proj_weight": (3 * width, width), "attn.in_proj_bias": (3 * width,),
            "attn.out_proj.weight": (width, width), "attn.out_proj.bias": (width,),
            "ln_1.weight": (width,), "ln_1.bias": (width,), "ln_2.weight": (width,), "ln_2.bias": (width,),
            "mlp.c_fc.weight": (4 * width, width), "mlp.c_fc.bias": (4 * width,),
            "mlp.c_proj.weight": (width, 4 * width), "mlp.c_proj.bias": (width,),
        }  # fmt: skip
        shapes |= {f"{block}.{name}": shape for name, shape in sizes.items()}
    return filled(TEXT | shapes)


def resnet_state() -> dict[str, Tensor]:
    from torch_fidelity.feature_extractor_clip import CLIPVisual

    built = CLIPVisual(24, 64, (1, 2, 1, 1), 8, 0).state_dict()
    floats = {name: tuple(value.shape) for name, value in built.items() if value.is_floating_point()}
    counts = {name: value for name, value in built.items() if not value.is_floating_point()}
    return filled(TEXT | floats) | counts


class Program(nn.Module):
    """A program that holds weights under dotted names, with code of its own, as CLIP's archives are."""

    def __init__(self, state: dict[str, Tensor]) -> None:
        super().__init__()
        for name, value in state.items():
            *parents, leaf = name.split(".")
            module: nn.Module = self
            for parent in parents:
                if parent not in module._modules:
                    module.add_module(parent, nn.Module())
                module = module._modules[parent]  # type: ignore[assignment]
            if value.is_floating_point() and "running" not in name:
                module.register_parameter(leaf, nn.Parameter(value))
            else:
                module.register_buffer(leaf, value)

    def forward(self, x: Tensor) -> Tensor:
        return x + 1


def archive(state: dict[str, Tensor], path: Path) -> Path:
    """Write weights as OpenAI publishes them: a TorchScript archive, mostly in half precision, with three numbers."""
    numbers = {name: torch.tensor(7) for name in ("input_resolution", "context_length", "vocab_size")}
    half = {
        name: value.half() if value.ndim > 1 and value.is_floating_point() else value for name, value in state.items()
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.script(Program(half | numbers)).save(str(path))
    return path


@pytest.fixture(scope="module")
def clip_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return archive(vit_state(), tmp_path_factory.mktemp("clip") / "ViT.pt")


def fitted(features: Any, dataset: Any = None) -> Any:
    features.fit(dataset or Images(), CPU)
    return features


class TestClip:
    @pytest.mark.parametrize("kind", ["vit", "resnet"])
    def test_is_torch_fidelitys(self, kind: str, tmp_path: Path) -> None:
        path = archive(vit_state() if kind == "vit" else resnet_state(), tmp_path / "clip.pt")
        theirs = FeatureExtractorCLIP("clip-vit-b-32", ["clip"], feature_extractor_weights_path=str(path))
        image = images(5)
        (expected,) = theirs(image)
        ours = fitted(Clip(str(path), digest(path), block_size=2))
        found = ours(as_data(image))
        assert found.shape == (5, 24)
        assert torch.allclose(found, expected, rtol=1e-4, atol=1e-5)
        assert float(expected.std(0).mean()) > 1e-3  # otherwise the comparison would show nothing
        side = 32 if kind == "vit" else 64
        assert (ours.checksum, ours.resize) == (digest(path), f"bilinear to {side}x{side} as in TensorFlow 1")

    def test_grey_images_and_other_value_ranges(self, clip_file: Path) -> None:
        theirs = FeatureExtractorCLIP("clip-vit-b-32", ["clip"], feature_extractor_weights_path=str(clip_file))
        image = images(3, shape=(1, 8, 12))
        (expected,) = theirs(image.expand(-1, 3, -1, -1))
        ours = fitted(Clip(str(clip_file), digest(clip_file)), Images((1, 8, 12), (0.0, 1.0)))
        assert torch.allclose(ours(image.double() / 255), expected, rtol=1e-4, atol=1e-5)
        assert ours.resize.startswith("grey to RGB, bilinear")

    def test_reads_what_torchscript_reads_without_its_code(
        self, clip_file: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        expected = torch.jit.load(str(clip_file)).state_dict()
        monkeypatch.setattr(torch.jit, "load", lambda *arguments, **named: pytest.fail("a program was loaded"))
        found = torchscript.without_code(clip_file.read_bytes())
        assert found.keys() == expected.keys()
        assert all(
            torch.equal(found[name], value) and found[name].dtype == value.dtype for name, value in expected.items()
        )
        fitted(Clip(str(clip_file), digest(clip_file)))

    def test_a_file_of_plain_tensors_serves_too(self, clip_file: Path, tmp_path: Path) -> None:
        torch.save(torch.jit.load(str(clip_file)).state_dict(), tmp_path / "plain.pt")
        x = as_data(images(2))
        plain = fitted(Clip(str(tmp_path / "plain.pt"), digest(tmp_path / "plain.pt")))
        assert torch.equal(plain(x), fitted(Clip(str(clip_file), digest(clip_file)))(x))

    def test_the_files_are_those_that_torch_fidelity_knows(self) -> None:
        assert {f"clip-{model}" for model in clip.FILES} == set(MODEL_METADATA)
        for model, (name, sha256, _) in clip.FILES.items():
            known = MODEL_METADATA[f"clip-{model}"]
            assert (known["filename"], known["hash"]) == (name, sha256)
        assert clip.published("vit-b-32").url == torch_fidelity.feature_extractor_clip.MODEL_URLS["clip-vit-b-32"]

    def test_code_in_an_archive_is_not_run(self, clip_file: Path, tmp_path: Path) -> None:
        class Code:
            def __reduce__(self) -> Any:
                return (Path.touch, (tmp_path / "run",))

        def changed(name: str, content: bytes, **how: Any) -> Path:
            path = tmp_path / "changed.pt"
            with zipfile.ZipFile(clip_file) as old, zipfile.ZipFile(path, "w") as new:
                for member in old.infolist():
                    same = member.filename.partition("/")[2] == name
                    new.writestr(member.filename, content if same else old.read(member), **how)
            return path

        for path in (
            changed("data.pkl", pickle.dumps(Code(), 2)),
            changed("data.pkl", b"text"),
            changed("data.pkl", pickle.dumps({"visual.proj": torch.ones(2).tolist()}, 2)),
            changed("none", b"", compress_type=zipfile.ZIP_DEFLATED),
        ):
            with pytest.raises(DataError, match="features 'clip': .* is not a file of weights"):
                fitted(Clip(str(path), digest(path)))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with zipfile.ZipFile(path, "w") as twice:
                twice.writestr("a/constants.pkl", b"")
                twice.writestr("a/data.pkl", b"1")
                twice.writestr("a/data.pkl", b"2")
        with pytest.raises(DataError, match="two members of one name"):
            fitted(Clip(str(path), digest(path)))
        assert not (tmp_path / "run").exists()

    def test_weights_of_another_network(self, tmp_path: Path) -> None:
        for number, state in enumerate(({"a": torch.ones(2)}, {**vit_state(), "visual.more": torch.ones(2)}, {})):
            path = archive(state, tmp_path / f"{number}.pt")
            with pytest.raises(DataError, match="features 'clip': .* holds the weights of another network"):
                fitted(Clip(str(path), digest(path)))


# --- DINOv2 ---


def dino_state(width: int = 64, depth: int = 2, grid: int = 37, gated: bool = False) -> dict[str, Tensor]:
    hidden = 4 * width
    shapes: dict[str, tuple[int, ...]] = {
        "cls_token": (1, 1, width), "pos_embed": (1, grid**2 + 1, width), "mask_token": (1, width),
        "patch_embed.proj.weight": (width, 3, 14, 14), "patch_embed.proj.bias": (width,),
        "norm.weight": (width,), "norm.bias": (width,),
    }  # fmt: skip
    mlp: dict[str, tuple[int, ...]] = {
        "mlp.w12.weight": (2 * hidden, width), "mlp.w12.bias": (2 * hidden,),
        "mlp.w3.weight": (width, hidden), "mlp.w3.bias": (width,),
    } if gated else {
        "mlp.fc1.weight": (hidden, width), "mlp.fc1.bias": (hidden,),
        "mlp.fc2.weight": (width, hidden), "mlp.fc2.bias": (width,),
    }  # fmt: skip
    for layer in range(depth):
        sizes: dict[str, tuple[int, ...]] = {
            "norm1.weight": (width,), "norm1.bias": (width,), "norm2.weight": (width,), "norm2.bias": (width,),
            "attn.qkv.weight": (3 * width, width), "attn.qkv.bias": (3 * width,),
            "attn.proj.weight": (width, width), "attn.proj.bias": (width,), "ls1.gamma": (width,), "ls2.gamma": (width,),
        } | mlp  # fmt: skip
        shapes |= {f"blocks.{layer}.{name}": shape for name, shape in sizes.items()}
    return filled(shapes, 1)


class Second(nn.Module):
    """The network written out a second time, from the paper and one image and one head at a time."""

    def __init__(self, state: dict[str, Tensor]) -> None:
        super().__init__()
        self.state = state

    def normalised(self, x: Tensor, name: str) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        unit = centred / (centred.square().mean(-1, keepdim=True) + 1e-6).sqrt()
        return unit * self.state[f"{name}.weight"] + self.state[f"{name}.bias"]

    def linear(self, x: Tensor, name: str) -> Tensor:
        return x @ self.state[f"{name}.weight"].T + self.state[f"{name}.bias"]

    def attention(self, x: Tensor, block: str) -> Tensor:
        width = x.shape[1]
        query, key, value = self.linear(x, f"{block}.attn.qkv").split(width, 1)
        heads = []
        for q, k, v in zip(query.split(64, 1), key.split(64, 1), value.split(64, 1), strict=True):
            heads.append((q @ k.T / 8).softmax(1) @ v)
        return self.linear(torch.cat(heads, 1), f"{block}.attn.proj")

    def mlp(self, x: Tensor, block: str) -> Tensor:
        if f"{block}.mlp.w3.weight" in self.state:
            first, second = self.linear(x, f"{block}.mlp.w12").chunk(2, 1)
            return self.linear(first * torch.sigmoid(first) * second, f"{block}.mlp.w3")
        inner = self.linear(x, f"{block}.mlp.fc1")
        return self.linear(inner * 0.5 * (1 + torch.erf(inner / math.sqrt(2))), f"{block}.mlp.fc2")

    def one(self, image: Tensor) -> Tensor:
        weight, positions = self.state["patch_embed.proj.weight"], self.state["pos_embed"][0]
        rows = image.shape[1] // 14
        patches = [
            weight.flatten(1) @ image[:, 14 * i : 14 * i + 14, 14 * j : 14 * j + 14].flatten()
            for i in range(rows)
            for j in range(rows)
        ]
        side = round(math.sqrt(len(positions) - 1))
        grid = positions[1:].T.reshape(1, -1, side, side)
        if side != rows:
            grid = functional.interpolate(grid, scale_factor=(rows + 0.1) / side, mode="bicubic")
        x = torch.stack(patches) + self.state["patch_embed.proj.bias"] + grid[0].flatten(1).T
        x = torch.cat([self.state["cls_token"][0] + positions[:1], x])
        for layer in range(len({name.split(".")[1] for name in self.state if name.startswith("blocks.")})):
            block = f"blocks.{layer}"
            x = x + self.state[f"{block}.ls1.gamma"] * self.attention(self.normalised(x, f"{block}.norm1"), block)
            x = x + self.state[f"{block}.ls2.gamma"] * self.mlp(self.normalised(x, f"{block}.norm2"), block)
        return self.normalised(x, "norm")[0]

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([self.one(image) for image in x])


@pytest.fixture(scope="module")
def dino_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("dino") / "dinov2_vits14_pretrain.pth"
    torch.save(dino_state(), path)
    return path


def their_dino(state: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return torch-fidelity's extractor, with a second implementation in place of the network that it would download."""
    monkeypatch.setattr(torch.hub, "load", lambda repository, name: Second(state))
    return FeatureExtractorDinoV2("dinov2-vit-s-14", ["dinov2"])


class TestDinov2:
    @pytest.mark.parametrize("gated", [False, True])
    @pytest.mark.parametrize("grid", [37, 16])
    def test_is_torch_fidelitys(self, gated: bool, grid: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        state = dino_state(width=128, grid=grid, gated=gated)
        torch.save(state, tmp_path / "dino.pth")
        image = images(3)
        (expected,) = their_dino(state, monkeypatch)(image)
        ours = fitted(Dinov2(str(tmp_path / "dino.pth"), digest(tmp_path / "dino.pth"), block_size=2))
        found = ours(as_data(image))
        assert found.shape == (3, 128)
        assert torch.allclose(found, expected, rtol=1e-4, atol=1e-4)
        assert float(expected.std(0).mean()) > 1e-2
        assert (ours.checksum, ours.resize) == (
            digest(tmp_path / "dino.pth"), "bilinear to 224x224 as in TensorFlow 1"
        )  # fmt: skip

    def test_the_positions_of_another_shape_of_grid(self) -> None:
        state = dino_state(grid=4)
        network = VisionTransformer.of(state).eval()
        with torch.no_grad():
            assert torch.equal(network._positions(4, 4), state["pos_embed"])
            assert network._positions(3, 5).shape == (1, 16, 64)

    def test_weights_of_another_network(self, tmp_path: Path) -> None:
        whole = dino_state()
        cases: list[dict[str, Tensor]] = [
            {"a": torch.ones(2)}, {}, whole | {"register_tokens": torch.zeros(1, 4, 64)},
            {name: value for name, value in whole.items() if name != "blocks.1.norm2.bias"},
            whole | {"pos_embed": torch.zeros(1, 12, 64)}, vit_state(),
        ]  # fmt: skip
        for number, state in enumerate(cases):
            path = tmp_path / f"{number}.pth"
            torch.save(state, path)
            with pytest.raises(DataError, match="features 'dinov2': .* holds the weights of another network"):
                fitted(Dinov2(str(path), digest(path)))

    @pytest.mark.parametrize(
        ("width", "depth", "hidden", "gated", "tensors", "parameters"),
        [
            (384, 12, 1536, False, 175, 22_056_576), (768, 12, 3072, False, 175, 86_580_480),
            (1024, 24, 4096, False, 343, 304_368_640), (1536, 40, 4096, True, 567, 1_136_480_768),
        ],
    )  # fmt: skip
    def test_sizes_of_the_published_files(
        self, width: int, depth: int, hidden: int, gated: bool, tensors: int, parameters: int
    ) -> None:
        """Numbers of tensors and parameters of the four published files; those of S and L are reported elsewhere too."""
        with torch.device("meta"):
            state = VisionTransformer(width, depth, 14, 37**2 + 1, hidden, gated).state_dict()
        assert (len(state), sum(value.numel() for value in state.values())) == (tensors, parameters)


# --- both ---

BOTH = {"clip": Clip, "dinov2": Dinov2}


@pytest.fixture(params=["clip", "dinov2"])
def given(request: pytest.FixtureRequest, clip_file: Path, dino_file: Path) -> tuple[str, Any, Path]:
    """Return name, class and a weights file."""
    return request.param, BOTH[request.param], clip_file if request.param == "clip" else dino_file


class TestBoth:
    def test_the_kit_knows_it(self, given: Any) -> None:
        name, kind, _ = given
        assert installed().registry.get("features", name).load() is kind
        readme, metrics = (ROOT / place for place in ("plugins/gebm-kit-inception/README.md", "docs/metrics.md"))
        assert all(p.injected or f"`{p.name}`" in readme.read_text() for p in parameters(kind).values())
        assert f"`{name}`" in metrics.read_text()
        files = clip.FILES if name == "clip" else dinov2.FILES
        for file, sha256, _ in files.values():  # type: ignore[attr-defined]
            assert file in readme.read_text()
            assert sha256 in readme.read_text()

    @pytest.mark.parametrize("name", ["clip", "dinov2"])
    def test_looking_at_it_imports_neither_torch_fidelity_nor_torchvision(self, name: str) -> None:
        program = f"""
import sys
from gebm_kit.cli.app import main
code = main(["describe", "features", {name!r}])
print(*sys.modules, file=sys.stderr)
sys.exit(code)
"""
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert name in done.stdout
        assert not {"torch_fidelity", "torchvision"} & set(done.stderr.split())

    def test_is_a_feature_map_like_any_other(self, given: Any) -> None:
        _, kind, path = given
        features = fitted(kind(str(path), digest(path)))
        assert isinstance(features, FeatureMap)
        x = as_data(images(3)).requires_grad_()
        out = features(x)
        assert not out.requires_grad
        assert torch.allclose(torch.cat([features(row) for row in x.split(1)]), out, atol=1e-4)
        bad = as_data(images(3))
        bad[1, 0, 0, 0] = torch.nan
        assert torch.isfinite(features(bad)).all(1).tolist() == [True, False, True]

    def test_without_the_file_the_message_says_where_from_and_where_to(self, given: Any, tmp_path: Path) -> None:
        name, kind, _ = given
        with pytest.raises(DataError, match=f"features '{name}' need the weights of") as caught:
            kind().check(Images())
        standard = (clip.published if name == "clip" else dinov2.published)(kind().model)
        assert str(tmp_path / "cache") in caught.value.message
        for text in (standard.url, str(tmp_path / "cache"), standard.sha256, f"name: {name}, weights: FILE"):
            assert text in caught.value.hint
        with pytest.raises(DataError, match="no weights file /nowhere/at.pth"):
            kind("/nowhere/at.pth").check(Images())

    @pytest.mark.parametrize("folder", ["cache", "torch/hub/checkpoints"])
    def test_is_found_by_its_names(self, given: Any, tmp_path: Path, folder: str) -> None:
        name, kind, path = given
        standard = (clip.published if name == "clip" else dinov2.published)(kind().model)
        (tmp_path / folder).mkdir(parents=True)
        for file in standard.names:
            (tmp_path / folder / file).symlink_to(path)
            kind(sha256=digest(path)).check(Images())
            with pytest.raises(DataError, match="is damaged or not the standard weights of"):
                kind().check(Images())
            (tmp_path / folder / file).unlink()

    def test_relative_paths_start_where_the_recipe_is_used(self, given: Any, tmp_path: Path) -> None:
        _, kind, path = given
        shutil.copy(path, tmp_path / "mine.pth")
        kind("mine.pth", digest(path), directory=tmp_path).check(Images())

    def test_what_is_damaged_is_not_opened(self, given: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        _, kind, path = given
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        (tmp_path / "bad.pth").write_bytes(content)
        monkeypatch.setattr(zipfile, "ZipFile", lambda *arguments: pytest.fail("opened"))
        monkeypatch.setattr(torch, "load", lambda *arguments, **named: pytest.fail("opened"))
        with pytest.raises(DataError, match="is damaged or not the weights that the recipe names"):
            fitted(kind(str(tmp_path / "bad.pth"), digest(path)))

    def test_code_in_a_file_is_not_run(self, given: Any, tmp_path: Path) -> None:
        class Code:
            def __reduce__(self) -> Any:
                return (Path.touch, (tmp_path / "run",))

        name, kind, _ = given
        zipped = io.BytesIO()
        torch.save({"cls_token": Code()}, zipped)
        for number, content in enumerate((pickle.dumps({"cls_token": Code()}), b"text", b"", zipped.getvalue())):
            path = tmp_path / f"{number}.pth"
            path.write_bytes(content)
            with pytest.raises(DataError, match=f"features '{name}': .* is not a file of weights"):
                fitted(kind(str(path), digest(path)))
        torch.save([torch.ones(2)], path)
        with pytest.raises(DataError, match="holds no weights by name"):
            fitted(kind(str(path), digest(path)))
        assert not (tmp_path / "run").exists()

    def test_arguments_and_data_that_do_not_fit(self, given: Any) -> None:
        _, kind, path = given
        with pytest.raises(UsageError, match="64 hexadecimal digits, got '6726825d'"):
            kind(sha256="6726825d")
        with pytest.raises(UsageError, match="model"):
            kind(model="vit-x-99")
        with pytest.raises(UsageError, match="block_size"):
            kind(block_size=0)
        right = kind(str(path), digest(path))
        for shape in ((7,), (2, 8, 8), (8, 8)):
            with pytest.raises(UsageError, match="need images of 1 or 3 channels"):
                right.check(Images(shape))
        with pytest.raises(UsageError, match="need images with a value range"):
            right.check(Images(value_range=None))

    def test_a_torchvision_that_does_not_fit_is_named(self, given: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        name, kind, path = given
        for module in ("feature_extractor_clip", "interpolate_compat_tensorflow"):
            monkeypatch.setitem(sys.modules, f"torch_fidelity.{module}", None)
        with pytest.raises(PluginError, match=f"features '{name}' need torch-fidelity, which can't be imported"):
            fitted(kind(str(path), digest(path)))


class TestMetrics:
    def test_cmmd_is_the_published_value_from_the_images_on(self, clip_file: Path) -> None:
        draws, reference = images(24, 1), images(20, 2)
        theirs = FeatureExtractorCLIP("clip-vit-b-32", ["clip"], feature_extractor_weights_path=str(clip_file))
        x, y = (theirs(image)[0].double().numpy() for image in (draws, reference))
        x, y = (rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (x, y))

        def mean(a: Any, b: Any) -> float:
            return float(np.exp(-((a[:, None] - b[None]) ** 2).sum(2) / 200).mean())

        expected = 1000 * (mean(x, x) + mean(y, y) - 2 * mean(x, y))
        features = fitted(Clip(str(clip_file), digest(clip_file)))
        context = EvalContext(as_data(draws), as_data(reference), Images(), lambda name: features, stream(0))
        metric = Cmmd()
        metric.check(Images())
        assert metric(context)["cmmd"] == pytest.approx(expected, abs=1e-4)
        assert expected > 0.01
        protocol = metric.protocol(context)
        assert (protocol["features"], protocol["features_checksum"]) == ("clip", digest(clip_file))

    @pytest.mark.parametrize("name", ["clip", "dinov2"])
    def test_fid_is_torch_fidelitys(
        self, name: str, clip_file: Path, dino_file: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        draws, reference = images(24, 1), images(20, 2)
        path = clip_file if name == "clip" else dino_file
        monkeypatch.setattr(torch.hub, "load", lambda repository, name: VisionTransformer.of(dino_state()))
        answers = torch_fidelity.calculate_metrics(
            input1=Bytes(draws), input2=Bytes(reference), cuda=False, verbose=False, fid=True, save_cpu_ram=True,
            cache=False, feature_extractor="clip-vit-b-32" if name == "clip" else "dinov2-vit-s-14",
            feature_extractor_weights_path=str(path) if name == "clip" else None,
        )  # fmt: skip
        features = fitted(BOTH[name](str(path), digest(path)))
        x, y = as_data(draws), as_data(reference)
        found = Fid(name)(EvalContext(x, y, Images(), lambda name: features, stream(0)))["fid"]
        assert found == pytest.approx(answers["frechet_inception_distance"], abs=1e-4, rel=1e-4)


def test_a_recipe_with_them(
    clip_file: Path, dino_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Without the file the recipe is refused before training; with the files the protocol has their checksums."""
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "images.npz", x=rng.random((40, 1, 8, 8), dtype=np.float32))
    monkeypatch.chdir(tmp_path)
    words = [
        "data={name: arrays, path: images.npz, value_range: [0.0, 1.0]}", "base={name: mlp, latent_dim: 2}",
        "train.steps=2", "train.start_steps=0", "train.final.steps=0", "eval.num_samples=6", "eval.num_sets=2",
        "sample.num_chains=6", "sample.num_samples=6", "sample.warmup=2", "sample.steps=4", "sample.thin=1",
        "eval.metrics=[cmmd, {name: authenticity, features: dinov2}]",
        "eval.num_reference=6", "eval.log_partition=importance-sampling", "eval.budget=1000",
    ]  # fmt: skip
    assert main(["train", "quickstart", *words, "--out", "run", "--quiet"]) == 2
    assert "features 'clip' need the weights of CLIP's image network ViT-L-14-336px" in capfd.readouterr().err
    assert not (tmp_path / "run" / "metrics.jsonl").exists()

    nodes = ", ".join(
        f"{{name: {name}, weights: '{path}', sha256: {digest(path)}}}"
        for name, path in (("clip", clip_file), ("dinov2", dino_file))
    )
    assert main(["train", "quickstart", *words, f"eval.features=[{nodes}]", "--out", "run2", "--quiet", "--json"]) == 0
    capfd.readouterr()
    assert main(["eval", "run2", "--json", "--quiet"]) == 0
    found = json.loads(capfd.readouterr().out)
    assert found["protocol"]["cmmd"]["features_checksum"] == digest(clip_file)
    assert found["protocol"]["authenticity"]["features_checksum"] == digest(dino_file)
    assert found["protocol"]["cmmd"]["resize"] == "grey to RGB, bilinear to 32x32 as in TensorFlow 1"
    assert found["metrics"]["gebm"]["cmmd"]["value"] > 0
    assert {"cmmd", "cmmd.train", "authenticity"} == set(found["metrics"]["gebm"])
