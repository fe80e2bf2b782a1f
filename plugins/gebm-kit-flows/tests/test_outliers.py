"""A planted outlier under a trained flow with an energy: the recommended column ranks it first, whatever its energy."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("gebm_kit_flows", reason="the plugin package gebm-kit-flows is not installed")

import gebm_kit as gk
from gebm_kit.core.interfaces import Energy
from gebm_kit.engine.run_directory.run import Run

WORDS = [
    "base={name: realnvp, transforms: 3, hidden: [32]}", "energy={name: mlp, hidden: [32, 32]}", "train.pretrain.steps=80",
    "train.steps=40", "train.start_steps=1", "train.final.steps=0", "train.batch_size=128", "eval.num_samples=40",
    "eval.num_sets=2", "eval.metrics=[mmd]", "sampler=imh", "sample.num_samples=40", "sample.num_chains=20",
    "sample.warmup=3", "sample.steps=4", "sample.thin=2",
]  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GEBM_KIT_LOAD_PLUGINS", "gebm-kit-flows")
        from gebm_kit.core.plugins import installed

        installed.cache_clear()
        patch.setattr("gebm_kit.engine.evaluation.evaluation_files.write_pictures", lambda *_, **__: [])
        return gk.train("redwine", WORDS, out=tmp_path_factory.mktemp("outliers") / "run")


def planted(run: Run, far: float) -> torch.Tensor:
    """Return all wines, and one more that is ``far`` standard deviations off in every column."""
    data = run.dataset
    rows = torch.cat([data.measured(data.split(part).first(10_000)) for part in ("train", "valid", "test")])
    signs = torch.tensor([1.0, -1.0] * 6, dtype=torch.float64)[:11]
    return torch.cat([rows, (rows.mean(0) + far * signs * rows.std(0)).unsqueeze(0)])


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("far", [6.0, 20.0, 100.0])
def test_a_planted_outlier_ranks_first(run: Run, far: float) -> None:
    scores = gk.score(run, planted(run, far))
    assert scores.rank_by is not None
    assert scores.rank_by.column == "log_density"
    assert scores.most_unlikely(1) == [1600]
    assert scores.as_dict()["rank_by"]["most_unlikely"] == "lowest"


class Lower(Energy):
    """An energy that falls without end, from 50 at the data to minus a hundred thousand far out."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 50.0 - 10 * x.flatten(1).norm(dim=1)


@pytest.mark.filterwarnings("ignore")
def test_the_lowest_energy_of_all_is_contradicted_in_words(run: Run) -> None:
    model = gk.GEBM(run.model.base, Lower())
    rows = run.dataset.standardised(planted(run, 20.0))
    scores = gk.score(model, rows, log_partition="importance-sampling")
    assert scores.energy is not None
    assert int(scores.energy.argmin()) == 1599
    assert scores.most_unlikely(1) == [1600]
    assert any("row" in said and "1600" in said and "rank by log_density" in said for said in scores.warnings)
