"""Train a DCGAN without gebm-kit, in plain PyTorch, and export it as TorchScript: a generator made elsewhere.

    python benchmarks/plain_gan.py DATA OUT.pt [--steps 5000] [--seed 0] [--latent 64] [--width 32]

DATA is a folder with ``train-images-idx3-ubyte(.gz)`` of MNIST or Fashion-MNIST. The program takes codes (B, latent, 1,
1), as DCGANs do, and returns images (B, 1, 28, 28) in [-1, 1]. 5,000 steps take nine minutes of one core.

References:
    Unsupervised Representation Learning with Deep Convolutional Generative Adversarial Networks. A. Radford, L. Metz,
    S. Chintala, ICLR 2016. https://arxiv.org/abs/1511.06434
"""

from __future__ import annotations

import argparse
import gzip
import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

BATCH = 64


class Generator(nn.Module):
    """The generator, (B, latent, 1, 1) -> (B, 1, 28, 28)."""

    def __init__(self, latent: int, width: int) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.ConvTranspose2d(latent, 4 * width, 7, 1, 0, bias=False),
            nn.BatchNorm2d(4 * width),
            nn.ReLU(),
            nn.ConvTranspose2d(4 * width, 2 * width, 4, 2, 1, bias=False),
            nn.BatchNorm2d(2 * width),
            nn.ReLU(),
            nn.ConvTranspose2d(2 * width, 1, 4, 2, 1),
            nn.Tanh(),
        )

    def forward(self, z: Tensor) -> Tensor:
        return self.net(z)


def discriminator(width: int) -> nn.Module:
    """Build the discriminator, (B, 1, 28, 28) -> (B, 1), a logit."""
    return nn.Sequential(
        nn.Conv2d(1, width, 4, 2, 1),
        nn.LeakyReLU(0.2),
        nn.Conv2d(width, 2 * width, 4, 2, 1, bias=False),
        nn.BatchNorm2d(2 * width),
        nn.LeakyReLU(0.2),
        nn.Flatten(),
        nn.Linear(2 * width * 7 * 7, 1),
    )


def images(folder: Path) -> Tensor:
    """Load the training images, (N, 1, 28, 28) in [-1, 1]."""
    name = "train-images-idx3-ubyte"
    packed = folder / f"{name}.gz"
    content = gzip.decompress(packed.read_bytes()) if packed.exists() else (folder / name).read_bytes()
    pixels = np.frombuffer(content, np.uint8, offset=16).reshape(-1, 1, 28, 28)
    return torch.from_numpy(pixels.astype(np.float32) / 127.5 - 1.0)


def train(data: Tensor, steps: int, seed: int, latent: int, width: int) -> Generator:
    """Train the non-saturating GAN of the paper: Adam at 2e-4 with beta1 0.5, weights of standard deviation 0.02."""
    torch.manual_seed(seed)
    generator, critic = Generator(latent, width), discriminator(width)
    for module in (*generator.modules(), *critic.modules()):
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            nn.init.normal_(module.weight, 0.0, 0.02)
    for_g = torch.optim.Adam(generator.parameters(), 2e-4, betas=(0.5, 0.999))
    for_d = torch.optim.Adam(critic.parameters(), 2e-4, betas=(0.5, 0.999))
    ones, zeros = torch.ones(BATCH, 1), torch.zeros(BATCH, 1)
    start = time.monotonic()
    for step in range(1, steps + 1):
        real = data[torch.randint(len(data), (BATCH,))]
        fake = generator(torch.randn(BATCH, latent, 1, 1))
        loss_d = F.binary_cross_entropy_with_logits(critic(real), ones)
        loss_d = loss_d + F.binary_cross_entropy_with_logits(critic(fake.detach()), zeros)
        for_d.zero_grad()
        loss_d.backward()
        for_d.step()
        loss_g = F.binary_cross_entropy_with_logits(critic(fake), ones)
        for_g.zero_grad()
        loss_g.backward()
        for_g.step()
        if step % 500 == 0:
            seconds = time.monotonic() - start
            print(f"{step}/{steps}  loss {loss_d.item():.3f} {loss_g.item():.3f}  {seconds:.0f} s", flush=True)
    return generator.eval()


def main() -> None:
    parser = argparse.ArgumentParser(description="Train a DCGAN in plain PyTorch and export it as TorchScript.")
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--steps", type=int, default=5_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--latent", type=int, default=64)
    parser.add_argument("--width", type=int, default=32)
    options = parser.parse_args()
    torch.set_num_threads(1)
    generator = train(images(options.data), options.steps, options.seed, options.latent, options.width)
    torch.jit.script(generator).save(str(options.out))
    print(f"wrote {options.out}")


if __name__ == "__main__":
    main()
