"""Global reductions: two gloo ranks that hold half a batch each give what one process gives for the whole."""

import math
import os
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing
from torch import Tensor

from gebm_kit.config.build import build
from gebm_kit.config.schema import ComponentNode
from gebm_kit.core import reduce
from gebm_kit.core.interfaces import Batch, LossTerms
from gebm_kit.core.model import GEBM
from gebm_kit.core.plugins import installed
from gebm_kit.energies.mlp import MlpEnergy

RANKS, ROWS = 2, 12

LOSSES = {
    "kale": ("kale", {}),
    "kale-adam": ("kale", {"update": "adam"}),
    "kale-dv": ("kale-dv", {}),
    "kale-dv-average": ("kale-dv", {"moving_average": 0.9}),
    "logistic": ("logistic", {}),
    "smile": ("smile", {"clip": 1.0}),
    "smile-clipped": ("smile", {"clip": 1.0, "gradient": "clipped"}),
    "flo": ("flo", {"hidden": [4]}),
    "relativistic": ("relativistic", {}),
    "hinge": ("hinge", {}),
    "wasserstein": ("wasserstein", {}),
    "cd": ("cd", {}),
    "pcd": ("pcd", {"space": "data"}),
}
PENALTIES = ("gradient", "r1", "r2")


def values() -> Tensor:
    """Spread out, so that the halves differ and averaging per-rank estimates is visibly wrong."""
    return 3.0 * torch.randn(ROWS, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def local_mean_of_estimates(part: Tensor) -> Tensor:
    """The mistake: a log-mean-exp on each rank, then averaged. The negative control."""
    estimate = torch.logsumexp(part, 0) - math.log(len(part))
    return reduce.mean(estimate.reshape(1))


def observed(rank: int, ranks: int) -> dict[str, Tensor]:
    """Everything that must not depend on the number of ranks, as this rank sees it."""
    rows = slice(rank * ROWS // ranks, (rank + 1) * ROWS // ranks)
    seen: dict[str, Tensor] = {}
    for name, function in {
        "logsumexp": reduce.logsumexp,
        "log_mean_exp": reduce.log_mean_exp,
        "mean": reduce.mean,
        "mistake": local_mean_of_estimates,
    }.items():
        part = values()[rows].requires_grad_()
        result = function(part)
        (grad,) = torch.autograd.grad(result.square(), part)
        seen[name] = result.detach()
        # DistributedDataParallel averages over ranks: what it would hand to a parameter that every row depends on.
        seen[f"{name} gradient"] = reduce.gather(grad) / ranks
    seen["weights"] = reduce.gather(reduce.softmax_weights(values()[rows]))
    seen["gathered"] = reduce.gather(values()[rows])
    seen["shared"] = reduce.gather(reduce.share(values()))
    generator = torch.Generator().manual_seed(3)
    for draw in (reduce.rand_rows, reduce.randn_like):  # in the same state on every rank
        seen[draw.__name__] = reduce.gather(draw(torch.zeros(len(values()[rows]), 2), generator))
    largest = values()[rows].max()
    reduce.all_reduce(largest, dist.ReduceOp.MAX)
    seen["all_reduce"] = largest
    for bad in (math.inf, -math.inf):
        extreme = values()
        extreme[:] = bad if bad < 0 else extreme
        extreme[0] = bad
        seen[f"logsumexp {bad}"] = reduce.logsumexp(extreme[rows])
    for name in LOSSES:
        seen |= loss_terms(name, rows, ranks)
    for name in PENALTIES:
        seen |= penalty_terms(name, rows, ranks)
    return seen


class Shift(torch.nn.Module):
    """A base of one parameter, the identity plus a shift."""

    def __init__(self) -> None:
        super().__init__()
        self.latent_dim, self.data_shape = 2, (2,)
        self.shift = torch.nn.Parameter(torch.tensor([0.5, -0.5], dtype=torch.float64))

    def forward(self, z: Tensor) -> Tensor:
        return z + self.shift


def model_and_batch(rows: slice) -> tuple[GEBM, Batch]:
    torch.manual_seed(0)
    energy = MlpEnergy([16], "tanh", data_scale=0.2, data_shape=(2,)).double()
    model = GEBM(Shift(), energy)  # type: ignore[arg-type]
    generator = torch.Generator().manual_seed(1)
    x, z = (torch.randn(ROWS, 2, generator=generator, dtype=torch.float64)[rows] for _ in range(2))
    return model, Batch(x + 1.0, z, model.base(z), negatives=2.0 * z - x)


def averaged(loss: Tensor, parameters: list[Tensor], ranks: int) -> Tensor:
    grads = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True, materialize_grads=True)
    flat = torch.cat([g.flatten() for g in grads])
    return reduce.gather(flat.unsqueeze(0)).sum(0) / ranks


def loss_terms(name: str, rows: slice, ranks: int) -> dict[str, Tensor]:
    kind, arguments = LOSSES[name]
    model, batch = model_and_batch(rows)
    loss = build("loss", ComponentNode(kind, arguments), {"data_shape": (2,)}).double()
    with torch.no_grad():
        loss.initialise(0.5 * model.energy(batch.x_base))  # not quite the optimum, so that r is not 1
        for parameter in loss.parameters():  # flo's network starts constant
            parameter.add_(torch.linspace(-0.3, 0.5, parameter.numel(), dtype=torch.float64).reshape(parameter.shape))
    terms: LossTerms = loss.energy_loss(model, batch)
    seen = {f"{name} {key}": value for key, value in terms.metrics.items()}
    seen[f"{name} energy loss"] = terms.loss.detach()
    learned = [*model.energy.parameters(), *loss.parameters()]
    seen[f"{name} energy gradient"] = averaged(terms.loss, learned, ranks)
    base = loss.base_loss(model, batch)
    seen[f"{name} base loss"] = base.loss.detach()
    seen[f"{name} base gradient"] = averaged(base.loss, list(model.base.parameters()), ranks)
    loss.after_energy_step(terms.metrics)
    if loss.log_ratio:
        seen[f"{name} A"] = loss.log_partition_estimate()
    return seen


def penalty_terms(name: str, rows: slice, ranks: int) -> dict[str, Tensor]:
    penalty = installed().registry.get("penalty", name).load()()
    model, batch = model_and_batch(rows)
    value = penalty(model.energy, batch, torch.Generator().manual_seed(0))
    return {
        f"{name} penalty": value.detach(),
        f"{name} penalty gradient": averaged(value, list(model.energy.parameters()), ranks),
    }


def work(rank: int, ranks: int, folder: str) -> None:
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=ranks)
    assert reduce.world_size() == ranks
    torch.save(observed(rank, ranks), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def by_rank(tmp_path_factory) -> list[dict[str, Tensor]]:
    folder: Path = tmp_path_factory.mktemp("ranks")
    torch.multiprocessing.spawn(work, args=(RANKS, str(folder)), nprocs=RANKS)
    return [torch.load(folder / f"{rank}.pt") for rank in range(RANKS)]


def test_two_ranks_equal_one_process(by_rank):
    alone = observed(0, 1)
    for seen in by_rank:
        assert seen.keys() == alone.keys()
        for name, expected in alone.items():
            if not name.startswith("mistake"):
                torch.testing.assert_close(
                    seen[name], expected, rtol=1e-10, atol=1e-12, msg=lambda m, n=name: f"{n}: {m}"
                )


def test_ranks_see_the_same_bits(by_rank):
    """What is learned from an estimate would otherwise drift apart."""
    for name, value in by_rank[0].items():
        assert torch.equal(value, by_rank[1][name]), name


def test_averaging_per_rank_estimates_would_have_been_noticed(by_rank):
    alone = observed(0, 1)
    assert (by_rank[0]["mistake"] - alone["mistake"]).abs() > 0.05
    assert (by_rank[0]["mistake gradient"] - alone["mistake gradient"]).abs().max() > 0.01


class TestOneProcess:
    def test_closed_forms(self):
        v = values()
        assert reduce.world_size() == 1
        torch.testing.assert_close(reduce.logsumexp(v), v.exp().sum().log())
        torch.testing.assert_close(reduce.log_mean_exp(v), v.exp().mean().log())
        torch.testing.assert_close(reduce.mean(v), v.mean())
        torch.testing.assert_close(reduce.softmax_weights(v), torch.softmax(v, 0))
        assert torch.equal(reduce.gather(v), v)

    def test_weights_and_gathered_rows_carry_no_gradient(self):
        v = values().requires_grad_()
        assert not reduce.softmax_weights(v).requires_grad
        assert not reduce.gather(v).requires_grad

    def test_a_single_value_is_its_own_mean(self):
        """The accumulation starts from its first term: no phantom sample."""
        assert reduce.log_mean_exp(torch.tensor([-50.0])).item() == -50.0

    def test_rows_that_can_not_be_shared_are_refused(self, monkeypatch):
        monkeypatch.setattr(reduce, "world_size", lambda: 5)
        with pytest.raises(ValueError, match="12 rows can't be shared evenly by 5 ranks"):
            reduce.share(values())

    def test_a_collective_that_breaks_says_that_a_rank_is_lost(self):
        with pytest.raises(reduce.RankLost, match="closed by peer"), reduce.collective():
            raise RuntimeError("Connection closed by peer\nlong explanation")

    def test_extreme_values(self):
        assert reduce.log_mean_exp(torch.tensor([1e4, -1e4])).item() == pytest.approx(1e4 - math.log(2))
