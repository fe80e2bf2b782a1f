"""The kit's own components, registered through the same hook as those of plugins.

To add one, write its file and add its line here.
"""

from __future__ import annotations

from gebm_kit.core.components import Component
from gebm_kit.core.hookspecs import hookimpl

COMPONENTS = (
    Component("base", "mlp", "gebm_kit.bases.mlp:MlpBase", "Fully connected generator"),
    Component(
        "base",
        "dcgan",
        "gebm_kit.bases.dcgan:DcganBase",
        "Convolutional generator for images of any size divisible by 4",
    ),
    Component(
        "base", "sngan", "gebm_kit.bases.sngan:SnganBase", "Convolutional generator of SNGAN, as published for GEBM"
    ),
    Component(
        "base", "resnet", "gebm_kit.bases.resnet:ResnetBase", "Residual generator of SNGAN, as published for GEBM"
    ),
    Component("base", "vae", "gebm_kit.bases.vae:Vae", "Variational autoencoder, with an encoder and the ELBO"),
    Component("base", "pretrained", "gebm_kit.bases.pretrained:Pretrained", "Your own generator, from a file"),
    Component("energy", "mlp", "gebm_kit.energies.mlp:MlpEnergy", "Fully connected energy"),
    Component(
        "energy",
        "projected",
        "gebm_kit.energies.projected:ProjectedEnergy",
        "Energy on features learned from the data beforehand, for generators that are already trained",
    ),
    Component(
        "energy", "codes", "gebm_kit.energies.codes:CodesEnergy", "Fully connected energy on an invertible base's codes"
    ),
    Component("energy", "conv", "gebm_kit.energies.conv:ConvEnergy", "Convolutional energy for images of any size"),
    Component(
        "energy", "sngan", "gebm_kit.energies.sngan:SnganEnergy", "Convolutional energy of SNGAN, as published for GEBM"
    ),
    Component(
        "energy", "resnet", "gebm_kit.energies.resnet:ResnetEnergy", "Residual energy of SNGAN, as published for GEBM"
    ),
    Component(
        "energy", "pretrained", "gebm_kit.energies.pretrained:PretrainedEnergy", "Your own frozen scorer, from a file"
    ),
    Component(
        "energy",
        "classifier",
        "gebm_kit.energies.classifier:ClassifierEnergy",
        "A class: minus its log-probability by a feature map's classifier",
    ),
    Component("energy", "sum", "gebm_kit.energies.sum:SumEnergy", "Weighted sum of energies that act together"),
    Component("loss", "kale", "gebm_kit.losses.kale:Kale", "KALE in its Fenchel form, with a learned log-partition"),
    Component("loss", "kale-dv", "gebm_kit.losses.kale_dv:KaleDV", "KALE in its Donsker-Varadhan form"),
    Component(
        "loss", "logistic", "gebm_kit.losses.logistic:Logistic", "Logistic density-ratio loss, the stable fallback"
    ),
    Component(
        "loss",
        "relativistic",
        "gebm_kit.losses.relativistic:Relativistic",
        "Relativistic pairs: which of two points is data; a smooth start, with r1 and r2",
    ),
    Component("loss", "smile", "gebm_kit.losses.smile:Smile", "Donsker-Varadhan with clipped importance weights"),
    Component("loss", "flo", "gebm_kit.losses.flo:Flo", "KALE with a network in place of the constant log-partition"),
    Component("loss", "hinge", "gebm_kit.losses.critics:Hinge", "Hinge GAN baseline; its critic is not a log-ratio"),
    Component(
        "loss", "wasserstein", "gebm_kit.losses.critics:Wasserstein", "Wasserstein critic, with a gradient penalty"
    ),
    Component(
        "loss",
        "cd",
        "gebm_kit.losses.contrastive:ContrastiveDivergence",
        "Contrastive divergence: negatives from short chains, newly started each time",
    ),
    Component(
        "loss",
        "pcd",
        "gebm_kit.losses.contrastive:PersistentContrastiveDivergence",
        "Contrastive divergence with chains that persist in a replay buffer",
    ),
    Component("loss", "ml", "gebm_kit.losses.likelihood:MaximumLikelihood", "Maximum likelihood of the base alone"),
    Component("loss", "elbo", "gebm_kit.losses.likelihood:Elbo", "Negative evidence lower bound of the base alone"),
    Component(
        "penalty", "gradient", "gebm_kit.penalties.gradient:GradientPenalty", "Squared gradient norm on interpolates"
    ),
    Component("penalty", "r1", "gebm_kit.penalties.zero_centred:R1", "Squared gradient norm on data"),
    Component("penalty", "r2", "gebm_kit.penalties.zero_centred:R2", "Squared gradient norm on base draws"),
    Component(
        "sampler",
        "auto",
        "gebm_kit.samplers.auto:Auto",
        "The sampler that suits the model, chosen by a pilot; the default",
    ),
    Component("sampler", "ula", "gebm_kit.samplers.ula:Ula", "Unadjusted Langevin (biased, fast)"),
    Component("sampler", "mala", "gebm_kit.samplers.mala:Mala", "Metropolis-adjusted Langevin"),
    Component(
        "sampler", "hmc", "gebm_kit.samplers.hmc:Hmc", "Hamiltonian Monte Carlo, kick-rotate for Gaussian priors"
    ),
    Component("sampler", "chees", "gebm_kit.samplers.chees:Chees", "HMC whose trajectory length is learnt (ChEES)"),
    Component(
        "sampler", "meads", "gebm_kit.samplers.meads:Meads", "Generalised HMC, one gradient a step, tuned by MEADS"
    ),
    Component("sampler", "pcn", "gebm_kit.samplers.pcn:Pcn", "Preconditioned Crank-Nicolson, gradient-free"),
    Component("sampler", "rwm", "gebm_kit.samplers.rwm:Rwm", "Random-walk Metropolis, gradient-free"),
    Component(
        "sampler", "imh", "gebm_kit.samplers.imh:Imh", "Independent Metropolis-Hastings: proposals are prior draws"
    ),
    Component(
        "sampler", "elliptical", "gebm_kit.samplers.elliptical:Elliptical", "Elliptical slice sampling, gradient-free"
    ),
    Component("sampler", "klmc", "gebm_kit.samplers.klmc:Klmc", "Kinetic Langevin, BAOAB (small bias, fast)"),
    Component("sampler", "isir", "gebm_kit.samplers.isir:Isir", "Iterated resampling of prior draws, with MALA moves"),
    Component("sampler", "sir", "gebm_kit.samplers.sir:Sir", "Prior draws resampled by weight (no chains; small bias)"),
    Component(
        "sampler",
        "smc",
        "gebm_kit.samplers.smc:Smc",
        "Sequential Monte Carlo: a population tempered from base to model, with log Z",
    ),
    Component(
        "sampler",
        "drs",
        "gebm_kit.samplers.drs:Drs",
        "Rejection sampling of base draws (refiner; exact if its bound holds)",
    ),
    Component("sampler", "dot", "gebm_kit.samplers.dot:Dot", "Discriminator optimal transport (refiner, no target)"),
    Component(
        "sampler", "dgflow", "gebm_kit.samplers.dgflow:Dgflow", "Discriminator gradient flow (refiner, no target)"
    ),
    Component("sampler", "pt", "gebm_kit.samplers.pt:Pt", "Parallel tempering from the prior, non-reversible"),
    Component("sampler", "mclmc", "gebm_kit.samplers.mclmc:Mclmc", "Microcanonical Langevin (small bias, fast)"),
    Component("sampler", "mams", "gebm_kit.samplers.mams:Mams", "Metropolis-adjusted microcanonical sampling"),
    Component("dataset", "eight-gaussians", "gebm_kit.data.toys:EightGaussians", "Eight Gaussians on a circle"),
    Component(
        "dataset", "twenty-five-gaussians", "gebm_kit.data.toys:TwentyFiveGaussians", "A 5x5 grid of narrow Gaussians"
    ),
    Component("dataset", "two-moons", "gebm_kit.data.toys:TwoMoons", "Two interleaved half circles"),
    Component("dataset", "checkerboard", "gebm_kit.data.toys:Checkerboard", "The dark squares of a 4x4 board"),
    Component("dataset", "rings", "gebm_kit.data.toys:Rings", "Concentric rings"),
    Component("dataset", "pinwheel", "gebm_kit.data.toys:Pinwheel", "Five bent arms"),
    Component("dataset", "curve", "gebm_kit.data.curve:Curve", "A one-dimensional curve in a space of many dimensions"),
    Component(
        "dataset", "digits", "gebm_kit.data.digits:Digits", "1,797 real 8x8 handwritten digits, shipped with the kit"
    ),
    Component("dataset", "arrays", "gebm_kit.data.arrays:Arrays", "Your own arrays: npz, npy, safetensors or csv"),
    Component(
        "dataset",
        "tabular",
        "gebm_kit.data.tabular:Tabular",
        "Tables of measurements for density estimation: dequantised, standardised",
    ),
    Component("dataset", "redwine", "gebm_kit.data.tabular:RedWine", "1,599 red wines, 11 measurements, shipped"),
    Component("dataset", "idx", "gebm_kit.data.idx:Idx", "MNIST-format files, gzipped or not"),
    Component("dataset", "image-folder", "gebm_kit.data.image_folder:ImageFolder", "A folder of PNG or JPEG images"),
    Component("dataset", "cifar10", "gebm_kit.data.cifar10:Cifar10", "CIFAR-10 from its binary archive"),
    Component("dataset", "celeba", "gebm_kit.data.celeba:Celeba", "CelebA's aligned faces in their official parts"),
    Component(
        "dataset", "imagenet32", "gebm_kit.data.imagenet32:Imagenet32", "The downsampled ImageNet from its npz batches"
    ),
    Component("dataset", "lsun", "gebm_kit.data.lsun:Lsun", "A category of LSUN, exported to a folder of images"),
    Component("features", "pixels", "gebm_kit.features.pixels:Pixels", "The data itself, flattened"),
    Component(
        "features",
        "classifier",
        "gebm_kit.features.classifier:Classifier",
        "Penultimate layer of a small classifier of the dataset",
    ),
    Component(
        "metric", "frechet", "gebm_kit.metrics.frechet:Frechet", "Fréchet distance between Gaussian fits of features"
    ),
    Component("metric", "fid", "gebm_kit.metrics.frechet:Fid", "FID: the plain Fréchet distance, as published"),
    Component("metric", "kid", "gebm_kit.metrics.kid:Kid", "KID: unbiased squared MMD with a cubic kernel"),
    Component(
        "metric",
        "inception-score",
        "gebm_kit.metrics.inception_score:InceptionScore",
        "Inception Score: how confident and how varied a classifier's predictions on the draws are",
    ),
    Component("metric", "prdc", "gebm_kit.metrics.prdc:Prdc", "Precision, recall, density and coverage"),
    Component("metric", "cmmd", "gebm_kit.metrics.cmmd:Cmmd", "CMMD: squared MMD of CLIP embeddings, as published"),
    Component("metric", "vendi", "gebm_kit.metrics.vendi:Vendi", "Vendi score: how many different draws there are"),
    Component(
        "metric",
        "authenticity",
        "gebm_kit.metrics.authenticity:Authenticity",
        "Share of draws that are not suspiciously near to a training row",
    ),
    Component(
        "metric",
        "data-copying",
        "gebm_kit.metrics.data_copying:DataCopying",
        "C_T: whether draws lie nearer to training data than held-out data do",
    ),
    Component("metric", "mmd", "gebm_kit.metrics.mmd:Mmd", "Unbiased squared maximum mean discrepancy"),
    Component(
        "metric",
        "sliced-wasserstein",
        "gebm_kit.metrics.sliced_wasserstein:SlicedWasserstein",
        "Sliced 2-Wasserstein distance",
    ),
    Component(
        "metric", "modes", "gebm_kit.metrics.modes:Modes", "Modes covered and share of high-quality points (toys)"
    ),
    Component(
        "metric", "ood-auroc", "gebm_kit.metrics.ood:OodAuroc", "How well the model tells another dataset from its own"
    ),
    Component("metric", "kale", "gebm_kit.metrics.kale:KaleMetric", "KALE of the energy on held-out data"),
    Component("logger", "jsonl", "gebm_kit.loggers.jsonl:Jsonl", "metrics.jsonl in the run directory"),
    Component(
        "logger",
        "tensorboard",
        "gebm_kit.loggers.tensorboard:TensorBoard",
        "Scalars, pictures and tables for TensorBoard",
    ),
    Component("logger", "trackio", "gebm_kit.loggers.trackio:Trackio", "A local Trackio project; no server"),
    Component(
        "logger", "wandb", "gebm_kit.loggers.wandb:WandB", "A Weights & Biases run, offline unless you say online"
    ),
    Component("logger", "mlflow", "gebm_kit.loggers.mlflow:MlFlow", "An MLflow run, in files unless you name a server"),
)


FIRST_PARTY: dict[str, tuple[tuple[str, str], ...]] = {
    "gebm-kit-flows": (
        ("base", "realnvp"),
        ("base", "maf"),
        ("base", "nsf"),
        ("base", "gaussianization"),
        ("energy", "flow"),
    ),
    "gebm-kit-hf": (("dataset", "hf"), ("base", "diffusers-vae"), ("base", "diffusers-pipeline")),
    "gebm-kit-inception": (("features", "inception"), ("features", "dinov2"), ("features", "clip")),
}
"""This project's plugin packages and the components that each provides, (kind, name).

The message about a component that is not installed names the package to install.
"""


@hookimpl
def gebm_components() -> tuple[Component, ...]:
    return COMPONENTS
