"""Tests of generators in files: weights of a registered base, programs, and every reason to refuse one."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from gebm_kit.bases.dcgan import DcganBase
from gebm_kit.bases.mlp import MlpBase
from gebm_kit.bases.pretrained import Pretrained
from gebm_kit.bases.vae import Vae
from gebm_kit.core.errors import CheckpointError, DataError, UsageError
from gebm_kit.core.interfaces import HasEncoder, HasPretraining, HasSource
from gebm_kit.core.trust import programs_trusted, trust_programs
from gebm_kit.testing import check_base

SHAPE = (1, 8, 8)


class Deconvolution(nn.Module):
    """A generator in the style of DCGAN: codes (B, Z, 1, 1), batch norm, tanh."""

    def __init__(self, latent: int = 6) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.ConvTranspose2d(latent, 4, 4, 1, 0, bias=False),
            nn.BatchNorm2d(4),
            nn.ReLU(),
            nn.ConvTranspose2d(4, 1, 4, 2, 1),
            nn.Tanh(),
        )

    def forward(self, z: Tensor) -> Tensor:
        return self.net(z)


class Flat(nn.Module):
    """A linear layer (B, 3) -> (B, 64) followed by ``end``."""

    def __init__(self, end: Callable[[Tensor], Any] = torch.tanh, size: int = 64) -> None:
        super().__init__()
        self.layer, self.end = nn.Linear(3, size), end

    def forward(self, z: Tensor) -> Any:
        return self.end(self.layer(z))


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def script(module: nn.Module, path: Path, example: Tensor) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.trace(module.eval(), example, check_trace=False), str(path))
    return path


def export(module: nn.Module, path: Path, example: Tensor, *, dynamic: bool = True) -> Path:
    shapes = ({0: torch.export.Dim("batch")},) if dynamic else None
    torch.export.save(torch.export.export(module, (example,), dynamic_shapes=shapes), path)
    return path


def load(path: Path, shape: tuple[int, ...] = SHAPE, value_range: Any = (-1.0, 1.0), **options: Any) -> Pretrained:
    with trust_programs():
        return Pretrained(str(path), data_shape=shape, value_range=value_range, **options)


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, nn.Module]]:
    """Write one generator as a TorchScript and as a torch.export program; return each path with the module."""
    folder = tmp_path_factory.mktemp("programs")
    torch.manual_seed(0)
    module, z = Deconvolution(), torch.randn(4, 6, 1, 1)
    module(torch.randn(64, 6, 1, 1))  # moves batch norm statistics away from their initial values
    module.eval()
    return {
        "torchscript": (script(module, folder / "generator.pt", z), module),
        "export": (export(module, folder / "generator.pt2", z), module),
    }


# --- programs --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["torchscript", "export"])
@pytest.mark.parametrize("prior", ["normal", "uniform", "sphere"])
def test_a_program_is_the_map_that_it_was_exported_from(programs, kind, prior):
    path, module = programs[kind]
    base = load(path, latent_shape=[6, 1, 1], prior=prior)
    assert (base.latent_dim, base.data_shape, base.prior.name) == (6, SHAPE, prior)
    z = base.sample_prior(5, torch.Generator().manual_seed(1)).requires_grad_()
    x = base(z)
    torch.testing.assert_close(x, module(z.reshape(5, 6, 1, 1)))
    (grad,) = torch.autograd.grad(x.square().sum(), z)
    assert (grad.abs().sum(1) > 0).all()
    assert not list(base.parameters())
    torch.testing.assert_close(base.train()(z), x)  # training mode changes nothing
    assert base.double()(z.double()).dtype == torch.float64
    assert torch.equal(base(z.double()).float(), x)  # it computes in the precision in which it was exported
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert isinstance(base, HasSource)
    assert base.source_sha256 == digest
    assert bytes(base.state_dict()["sha256"].tolist()).hex() == digest
    assert set(base.state_dict()) == {"sha256"}


def test_a_torch_export_program_states_its_latent_shape(programs):
    assert load(programs["export"][0]).latent_dim == 6
    with pytest.raises(UsageError, match=r"takes codes of shape \[6, 1, 1\], but base.latent_shape is \[7, 1, 1\]"):
        load(programs["export"][0], latent_shape=[7, 1, 1])
    with pytest.raises(UsageError, match="set base.latent_shape") as caught:
        load(programs["torchscript"][0])
    assert "[100, 1, 1]" in caught.value.hint


@pytest.mark.parametrize("kind", ["torchscript", "export"])
def test_a_program_is_loaded_only_when_it_is_trusted(programs, kind):
    path, _ = programs[kind]
    assert not programs_trusted()
    with pytest.raises(UsageError, match=r"is a .* program: loading it runs code that its author wrote") as caught:
        Pretrained(str(path), latent_shape=[6, 1, 1], data_shape=SHAPE)
    assert "--trust-program" in caught.value.hint
    assert hashlib.sha256(path.read_bytes()).hexdigest() in caught.value.message
    with trust_programs():
        with trust_programs(False):
            assert not programs_trusted()
        assert programs_trusted()
    assert not programs_trusted()


def test_values_are_mapped_to_the_range_of_the_data(tmp_path):
    module = Flat(lambda x: torch.sigmoid(4 * x))
    path = script(module, tmp_path / "g.pt", torch.randn(2, 3))
    with pytest.raises(UsageError, match=r"returns values from .* but the data lie in \[-1, 1\]") as caught:
        load(path, latent_shape=[3], output_shape=[64])
    assert "base.output_range" in caught.value.hint
    assert "[0,1]" in caught.value.hint
    base = load(path, latent_shape=[3], output_shape=[64], output_range=[0, 1])
    z = torch.randn(5, 3)
    torch.testing.assert_close(base(z), 2 * module(z).reshape(5, *SHAPE) - 1)
    as_it_is = load(path, latent_shape=[3], output_shape=[64], output_range=[-1, 1])
    torch.testing.assert_close(as_it_is(z), module(z).reshape(5, *SHAPE))
    assert load(path, value_range=None, latent_shape=[3], output_shape=[64])(z).min() >= 0
    for wrong in ([0], [1, 0], [0, 1, 2]):
        with pytest.raises(UsageError, match="output_range must be"):
            load(path, latent_shape=[3], output_shape=[64], output_range=wrong)
    with pytest.raises(UsageError, match="needs data with a fixed range"):
        load(path, value_range=None, latent_shape=[3], output_shape=[64], output_range=[0, 1])
    bytes_ = script(Flat(lambda x: 255 * torch.sigmoid(x)), tmp_path / "bytes.pt", torch.randn(2, 3))
    with pytest.raises(UsageError) as caught:
        load(bytes_, latent_shape=[3], output_shape=[64])
    assert "[0,255]" in caught.value.hint


class TwoInputs(nn.Module):
    def forward(self, z: Tensor, label: Tensor) -> Tensor:
        return z + label


class Noisy(nn.Module):
    def forward(self, z: Tensor) -> Tensor:
        return z + torch.randn_like(z)


class OneSize(nn.Module):
    def forward(self, z: Tensor) -> Tensor:
        return z.reshape(4, 64)[:, :64].reshape(4, 1, 8, 8)


class NoGradient(nn.Module):
    def forward(self, z: Tensor) -> Tensor:
        return torch.tanh(z.detach())


REFUSED: dict[str, tuple[Callable[[], nn.Module], list[int], str]] = {
    "shape": (lambda: Flat(size=100), [3], r"returns \[100\] for each code, but the data have \[1, 8, 8\]$"),
    "flat": (lambda: Flat(), [3], r"returns \[64\] for each code, but the data have \[1, 8, 8\]$"),
    "codes": (lambda: Flat(), [5], r"fails on 16 codes of shape \[5\]"),
    "nan": (lambda: Flat(lambda x: (x - 100).log().reshape(-1, 1, 8, 8)), [3], "not finite"),
    "tuple": (lambda: Flat(lambda x: (x, x)), [3], "returns a tuple, but must return one tensor"),
    "bytes": (lambda: Flat(lambda x: (100 * x).byte().reshape(-1, 1, 8, 8)), [3], "returns torch.uint8"),
    "noise": (lambda: Noisy(), [1, 8, 8], "is not a function of its codes"),
    "one size": (lambda: OneSize(), [1, 8, 8], r"fails on 16 codes|for 16 codes"),
    "no gradient": (lambda: NoGradient(), [1, 8, 8], "breaks the gradient"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_program_that_is_not_a_base_is_refused_in_one_message(tmp_path, name):
    make, latent, message = REFUSED[name]
    example = torch.randn(4, *(latent if name != "codes" else [3]))
    path = script(make(), tmp_path / "g.pt", example)
    with pytest.raises(UsageError, match=message) as caught:
        load(path, latent_shape=latent)
    assert "\n" not in caught.value.message
    assert str(path) in caught.value.message
    if name == "flat":
        assert "base.output_shape=[64]" in caught.value.hint


PICTURES = {
    "channels last": ([2, 3, 4], {}, "can be images .rows, columns, channels.", "set base.channels_last=true"),
    "merged, channels last": ([6, 4], {}, "can be images .rows, columns, channels.", "set base.channels_last=true"),
    "flat": ([24], {}, r"returns \[24\] for each code", "If they are in the order rows, columns, channels"),
    "another order": ([3, 4, 2], {}, r"returns \[3, 4, 2\]", "export a program that returns the shape of the data"),
    "declared": ([2, 3, 4], {"output_shape": [2, 3, 4]}, "mixing up the axes", "set base.channels_last=true"),
    "declared otherwise": ([4, 2, 3], {"channels_last": True}, "channels first", "Leave out base.channels_last"),
    "declared, another order": ([3, 2, 4], {"output_shape": [3, 2, 4]}, "mixing up the axes", "Export a program"),
}


@pytest.mark.parametrize("name", PICTURES)
def test_no_advice_mixes_up_the_axes_of_pictures(tmp_path, name):
    returned, options, message, hint = PICTURES[name]
    path = script(Flat(lambda x: torch.tanh(x).reshape(-1, *returned), 24), tmp_path / "g.pt", torch.randn(2, 3))
    with pytest.raises(UsageError, match=message) as caught:
        load(path, (4, 2, 3), latent_shape=[3], **options)
    assert hint in caught.value.hint


@pytest.mark.parametrize("returned", [[2, 3, 4], [6, 4], [24]])
def test_images_with_the_channels_last_are_permuted(tmp_path, returned):
    path = script(Flat(lambda x: torch.tanh(x).reshape(-1, *returned), 24), tmp_path / "g.pt", torch.randn(2, 3))
    given = None if len(returned) == 3 else returned
    base = load(path, (4, 2, 3), latent_shape=[3], channels_last=True, output_shape=given)
    z = torch.randn(5, 3)
    program = torch.jit.load(path)
    assert torch.equal(base(z), program(z).reshape(5, 2, 3, 4).permute(0, 3, 1, 2))
    for shape in ((24,), (4, 6)):
        with pytest.raises(UsageError, match="base.channels_last is for images"):
            load(path, shape, latent_shape=[3], channels_last=True)


ROWS: dict[str, tuple[Callable[[Tensor], Tensor], str]] = {
    "deviation": (lambda x: x * x.std(0, keepdim=True), "rows depend on each other"),
    "mean": (lambda x: x - x.mean(0, keepdim=True), "statistics over the rows"),
    "a trace of the others": (lambda x: x + 1e-6 * x.mean(0, keepdim=True), "statistics over the rows"),
    "its neighbour": (lambda x: x + x.roll(1, 0), "statistics over the rows"),
}


@pytest.mark.parametrize("name", ROWS)
def test_a_program_whose_rows_mix_is_refused(tmp_path, name):
    end, message = ROWS[name]

    class Mixing(Flat):
        def forward(self, z: Tensor) -> Any:
            return torch.tanh(end(self.layer(z))).reshape(-1, *SHAPE)

    path = export(Mixing(lambda x: x).eval(), tmp_path / "g.pt2", torch.randn(5, 3))
    with pytest.raises(UsageError, match=message) as caught:
        load(path)
    assert "statistics over the batch" in caught.value.hint


FLAT_GRADIENT: dict[str, tuple[Callable[[Tensor], Tensor], str, str]] = {
    "rounded": (lambda x: torch.round(torch.tanh(x) * 8) / 8, "gradient of 0", "rounding"),
    "floor": (lambda x: torch.floor(torch.sigmoid(x) * 8) / 8, "gradient of 0", "rounding"),
    "sign": (torch.sign, "gradient of 0", "sign"),
    "bytes": (lambda x: (100 * torch.sigmoid(x)).byte().float() / 255, "breaks the gradient", "bytes"),
    "one hot": (lambda x: nn.functional.one_hot(x.argmax(1), 64).float(), "breaks the gradient", "argmax"),
    "detached": (lambda x: torch.tanh(x.detach()), "breaks the gradient", "detach()"),
    "collapsed": (lambda x: torch.tanh(0 * x + 0.3), "the same values for all of 16 codes", "weights"),
}


@pytest.mark.parametrize("name", FLAT_GRADIENT)
def test_a_missing_gradient_is_named_with_what_may_cause_it(tmp_path, name):
    end, message, hint = FLAT_GRADIENT[name]
    path = script(Flat(lambda x: end(x).reshape(-1, *SHAPE)), tmp_path / "g.pt", torch.randn(4, 3))
    with pytest.raises(UsageError, match=message) as caught:
        load(path, latent_shape=[3])
    assert hint in caught.value.hint


class InPlace(Flat):
    """A program that changes its codes."""

    def forward(self, z: Tensor) -> Any:
        return torch.tanh(self.layer(z.mul_(0.5))).reshape(-1, 1, 8, 8)


def test_a_program_that_changes_its_codes_is_refused(tmp_path):
    torch.jit.save(torch.jit.trace(InPlace().eval(), torch.randn(4, 3), check_trace=False), tmp_path / "g.pt")
    with pytest.raises(UsageError, match="changes the codes that it is given in place"):
        load(tmp_path / "g.pt", latent_shape=[3])


def test_what_is_particular_to_a_kind_of_program(tmp_path):
    z = torch.randn(4, 6, 1, 1)
    fixed = export(Deconvolution().eval(), tmp_path / "fixed.pt2", z, dynamic=False)
    with pytest.raises(
        UsageError, match="takes only batches of 4 codes, but a base gets batches of any size"
    ) as caught:
        load(fixed)
    assert "dynamic_shapes" in caught.value.hint
    training = export(Deconvolution().train(), tmp_path / "training.pt2", z)
    with pytest.raises(UsageError, match="training mode") as caught:
        load(training)
    assert ".eval()" in caught.value.hint
    two = tmp_path / "two.pt"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.script(TwoInputs()), str(two))
    with pytest.raises(UsageError, match="of 2 inputs"):
        load(two, latent_shape=[3])
    both = torch.export.export(TwoInputs(), (torch.randn(4, 3), torch.randn(4, 3)))
    torch.export.save(both, tmp_path / "two.pt2")
    with pytest.raises(UsageError, match="of 2 inputs"):
        load(tmp_path / "two.pt2")


def test_files_that_are_not_a_generator(tmp_path, programs):
    with pytest.raises(DataError, match="does not exist"):
        load(tmp_path / "g.pt")
    state = tmp_path / "state.pt"
    torch.save(Deconvolution().state_dict(), state)
    with pytest.raises(DataError, match="pickle of torch.save, which is never loaded") as caught:
        load(state)
    assert "save_file" in caught.value.hint
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(DataError, match="is not a generator: it must be"):
        load(tmp_path / "notes.txt")
    for path, _ in programs.values():
        damaged = tmp_path / path.name
        with zipfile.ZipFile(path) as whole, zipfile.ZipFile(damaged, "w") as half:
            for name in whole.namelist():
                spoilt = "/code/" in name or "/models/" in name
                half.writestr(name, b"not what was written" if spoilt else whole.read(name))
        with pytest.raises(DataError, match="can't be loaded as") as caught:
            load(damaged, latent_shape=[6, 1, 1])
        assert "\n" not in caught.value.message
        damaged.write_bytes(path.read_bytes()[:1000])
        with pytest.raises(DataError, match="is not a generator"):
            load(damaged, latent_shape=[6, 1, 1])


def test_files_of_other_kinds_are_named(tmp_path):
    import pickle

    torch.save(Deconvolution(), tmp_path / "module.pt")
    torch.save(Deconvolution().state_dict(), tmp_path / "state.pt")
    torch.save(Deconvolution().state_dict(), tmp_path / "legacy.pt", _use_new_zipfile_serialization=False)
    (tmp_path / "any.pkl").write_bytes(pickle.dumps({"weights": [1.0]}))
    np.save(tmp_path / "rows.npy", np.zeros(3))
    np.savez(tmp_path / "rows.npz", x=np.zeros(3))
    (tmp_path / "g.onnx").write_bytes(b"\x08\x07")
    (tmp_path / "g.h5").write_bytes(b"\x89HDF\r\n")
    with zipfile.ZipFile(tmp_path / "compiled.pt2", "w") as archive:
        archive.writestr("g/data/aotinductor/model/x.so", b"")
    words = {
        "module.pt": "is a pickle of torch.save, which is never loaded; it holds objects such as .*Deconvolution",
        "state.pt": r"holds weights alone \(a state_dict\)",
        "legacy.pt": "is a pickle, which is never loaded",
        "any.pkl": "is a pickle, which is never loaded",
        "rows.npy": "it is a file of arrays",
        "rows.npz": "is a file of arrays",
        "g.onnx": "it is an ONNX model",
        "g.h5": "it is a file of Keras or HDF5",
        "compiled.pt2": "compiled package .AOTInductor., which has no gradient",
    }
    for name, message in words.items():
        with pytest.raises(DataError, match=message) as caught:
            load(tmp_path / name)
        assert caught.value.hint
    assert "torch.load('state.pt', weights_only=True)" in refusal(tmp_path / "state.pt").hint
    os.mkfifo(tmp_path / "pipe.pt")
    assert "is a named pipe" in refusal(tmp_path / "pipe.pt").message


def refusal(path: Path) -> DataError | UsageError:
    with pytest.raises((DataError, UsageError)) as caught:
        load(path)
    return caught.value


def test_folders_are_named_with_the_component_that_reads_them(tmp_path):
    def folder(name: str, **files: Any) -> Path:
        for file, content in files.items():
            place = tmp_path / name / file.replace("__", "/").replace("_json", ".json")
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_text(json.dumps(content))
        (tmp_path / name).mkdir(exist_ok=True)
        return tmp_path / name

    vae, unet = {"_class_name": "AutoencoderKL"}, {"_class_name": "UNet2DModel"}
    found = refusal(folder("vae", config_json=vae))
    assert "diffusers autoencoder (AutoencoderKL)" in found.message
    assert f"base='{{name: diffusers-vae, path: \"{tmp_path / 'vae'}\"}}'" in found.hint
    pipeline = {"_class_name": "StableDiffusionPipeline"}
    found = refusal(folder("pipe", model_index_json=pipeline, vae__config_json=vae, unet__config_json=unet))
    assert "whole diffusers pipeline (StableDiffusionPipeline)" in found.message
    assert "subfolder: vae" in found.hint
    assert "needs many steps" in refusal(folder("ddpm", model_index_json=pipeline, unet__config_json=unet)).message
    assert "diffusers network (UNet2DModel)" in refusal(folder("unet", config_json=unet)).message
    tiny = refusal(folder("tiny", config_json={"_class_name": "AutoencoderTiny"}))
    assert "diffusers autoencoder (AutoencoderTiny)" in tiny.message
    assert "transformers model (gpt2)" in refusal(folder("gpt", config_json={"model_type": "gpt2"})).message
    run = folder("run", resolved_json={}, checkpoints__step__x_json={})
    (run / "resolved.yaml").touch()
    (run / "checkpoints" / "step" / "model.safetensors").touch()
    assert "is a run of gebm-kit" in refusal(run).message
    assert "base.prefix=base." in refusal(run).hint
    empty = folder("empty")
    assert "is a folder, but a generator's file is needed" in refusal(empty).message
    (empty / "g.pt").touch()
    assert "g.pt" in refusal(empty).hint
    damaged = folder("damaged")
    (damaged / "config.json").write_text("[" * 100_000)
    assert "is a folder" in refusal(damaged).message


def test_parameters_that_do_not_go_together(tmp_path, programs):
    weights = tmp_path / "w.safetensors"
    safetensors.torch.save_file(MlpBase(3, [4], data_shape=(2,)).state_dict(), weights)
    with pytest.raises(UsageError, match="base.architecture must say which network"):
        load(weights, (2,))
    with pytest.raises(UsageError, match="base.latent_shape is only for programs"):
        load(weights, (2,), architecture=MlpBase(3, [4], data_shape=(2,)), latent_shape=[3])
    with pytest.raises(UsageError, match="base.architecture belongs to a .safetensors file"):
        load(programs["export"][0], architecture=DcganBase(6, 4, data_shape=SHAPE))
    with pytest.raises(UsageError, match="base.prefix belongs to a .safetensors file"):
        load(programs["export"][0], prefix="generator.")


# --- weights ---------------------------------------------------------------------------------------------------------


def test_weights_of_a_registered_base(tmp_path):
    trained = DcganBase(6, 4, data_shape=SHAPE, value_range=(-1.0, 1.0))
    path = tmp_path / "generator.safetensors"
    safetensors.torch.save_file(trained.state_dict(), path)
    fresh = DcganBase(6, 4, prior="uniform", data_shape=SHAPE, value_range=(-1.0, 1.0))
    base = Pretrained(str(path), fresh, data_shape=SHAPE, value_range=(-1.0, 1.0))  # weights need no trust
    z = torch.randn(5, 6)
    assert torch.equal(base.eval()(z), trained.eval()(z))
    assert base.prior.name == "uniform"
    assert len(list(base.parameters())) == len(list(trained.parameters()))
    assert not isinstance(base, HasPretraining)
    check_base(base)


def test_an_architecture_keeps_what_else_it_can_do(tmp_path):
    trained = Vae(3, hidden=[4], data_shape=(2,))
    path = tmp_path / "vae.safetensors"
    safetensors.torch.save_file(trained.state_dict(), path)
    base = Pretrained(str(path), Vae(3, hidden=[4], data_shape=(2,)), data_shape=(2,))
    assert isinstance(base, HasEncoder)
    assert isinstance(base, HasPretraining)
    x = torch.randn(5, 2)
    assert torch.equal(base.encode(x), trained.encode(x))


def test_a_conditional_architecture_makes_a_conditional_base(tmp_path):
    facts = {"data_shape": SHAPE, "value_range": (-1.0, 1.0), "num_classes": 3}
    for name, make in {
        "dcgan": lambda: DcganBase(6, 4, conditional=True, **facts),
        "vae": lambda: Vae(3, hidden=[4], conditional=True, **facts),
    }.items():
        trained, path = make().eval(), tmp_path / f"{name}.safetensors"
        safetensors.torch.save_file(trained.state_dict(), path)
        base = Pretrained(str(path), make(), data_shape=SHAPE, value_range=(-1.0, 1.0)).eval()
        assert (base.conditional, base.num_classes) == (True, 3)
        z, labels = torch.randn(3, base.latent_dim), torch.tensor([2, 0, 1])
        assert torch.equal(base(z, labels), trained(z, labels))
        if name == "vae":
            assert torch.equal(base.encode(base(z, labels), labels), trained.encode(base(z, labels), labels))
        with pytest.raises(UsageError, match="is conditional: it needs the class of every row"):
            base(z)
        check_base(base)


def test_a_prefix_chooses_the_generator_in_a_larger_file(tmp_path):
    trained = MlpBase(3, [4], data_shape=(2,))
    tensors = {f"model.generator.{name}": tensor for name, tensor in trained.state_dict().items()}
    path = tmp_path / "all.safetensors"
    safetensors.torch.save_file({**tensors, "critic.weight": torch.zeros(3)}, path)
    fresh = MlpBase(3, [4], data_shape=(2,))
    with pytest.raises(
        UsageError, match=r"does not fit base.architecture: .*missing from the file.*unknown to the architecture"
    ) as caught:
        load(path, (2,), architecture=fresh)
    assert "base.prefix=model.generator." in caught.value.hint
    base = load(path, (2,), architecture=fresh, prefix="model.generator.")
    z = torch.randn(5, 3)
    assert torch.equal(base(z), trained(z))


def test_weights_that_do_not_fit(tmp_path):
    path = tmp_path / "w.safetensors"
    safetensors.torch.save_file(MlpBase(3, [4], data_shape=(2,)).state_dict(), path)
    with pytest.raises(UsageError, match=r"has shape \(4, 3\) in the file and \(5, 3\) in the network"):
        load(path, (2,), architecture=MlpBase(3, [5], data_shape=(2,)))
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(DataError, match="is not a safetensors file"):
        load(path, (2,), architecture=MlpBase(3, [4], data_shape=(2,)))
    whole = {
        name: (9 * tensor).to(torch.int8) for name, tensor in MlpBase(3, [4], data_shape=(2,)).state_dict().items()
    }
    safetensors.torch.save_file(whole, path)
    with pytest.raises(UsageError, match="has type torch.int8 in the file and torch.float32 in the network"):
        load(path, (2,), architecture=MlpBase(3, [4], data_shape=(2,)))
    small = {name: t.to(torch.float8_e4m3fn) for name, t in MlpBase(3, [4], data_shape=(2,)).state_dict().items()}
    safetensors.torch.save_file(small, path.with_suffix(".bin"))  # known by its content, whatever its name
    assert load(path.with_suffix(".bin"), (2,), architecture=MlpBase(3, [4], data_shape=(2,))).latent_dim == 3
    broken = MlpBase(3, [4], data_shape=(2,))
    with torch.no_grad():
        next(broken.parameters()).fill_(torch.nan)
    safetensors.torch.save_file(broken.state_dict(), path)
    with pytest.raises(DataError, match="weights that are not finite"):
        load(path, (2,), architecture=MlpBase(3, [4], data_shape=(2,)))


# --- in a run --------------------------------------------------------------------------------------------------------


def test_a_state_fits_the_very_file_that_it_came_from(programs, tmp_path):
    one = load(programs["torchscript"][0], latent_shape=[6, 1, 1])
    one.load_state_dict(one.state_dict())
    other = load(programs["export"][0])
    with pytest.raises(RuntimeError, match="is not the generator that it was trained with"):
        other.load_state_dict(one.state_dict())


def test_the_copy_in_a_run_comes_first_and_is_verified(programs, tmp_path):
    path, _ = programs["torchscript"]
    kept = tmp_path / "run" / "base" / path.name
    kept.parent.mkdir(parents=True)
    shutil.copy(path, kept)
    gone = tmp_path / "gone" / path.name
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    kept.with_name(f"{kept.name}.sha256").write_text(f"{digest}  {kept.name}\n")
    base = load(gone, latent_shape=[6, 1, 1], run_directory=tmp_path / "run")
    assert base.source_file == kept
    kept.write_bytes(kept.read_bytes() + b"x")
    with pytest.raises(CheckpointError, match="is damaged: its sha256 is not the one"):
        load(gone, latent_shape=[6, 1, 1], run_directory=tmp_path / "run")
