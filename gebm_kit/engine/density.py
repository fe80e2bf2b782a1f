"""Log-densities of rows under a trained model whose base has a density."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from gebm_kit.core.model import GEBM
from gebm_kit.core.progress import OnProgress
from gebm_kit.engine.likelihood.class_densities import labels_of_rows
from gebm_kit.engine.likelihood.estimate_log_partition import Method
from gebm_kit.engine.likelihood.log_densities import LogDensities, densities
from gebm_kit.engine.likelihood.nll import Space
from gebm_kit.engine.likelihood.row_sources import Rows, sourced
from gebm_kit.engine.likelihood.usable_rows import BadRows, usable_rows
from gebm_kit.engine.likelihood.user_rows import model_of
from gebm_kit.engine.process.progress_bar import check_progress, progress_shown

if TYPE_CHECKING:
    from gebm_kit.engine.run_directory.calibrated import Beta
    from gebm_kit.engine.run_directory.run import Run


def log_density(
    run_or_model: Run | GEBM | str | Path,
    rows: Rows,
    *,
    labels: int | Sequence[int] | Tensor | np.ndarray | None = None,
    inverse_temperature: Beta | None = None,
    space: Space | None = None,
    log_partition: Method | None = None,
    seed: int | None = None,
    device: torch.device | str | None = None,
    bad_rows: BadRows = "stop",
    progress: bool | None = None,
    on_progress: OnProgress | None = None,
) -> LogDensities:
    """Compute the log-densities of ``rows`` (N, *D), in nats.

    Rows are a tensor or an array (N, *D), a data frame, or the path of a file, as `gebm-kit density RUN FILE` reads it. For
    a run whose dataset standardises, all of them are measurements like those in its file. For any other run or model,
    tensors and arrays are data as the model sees it. Columns of frames and files are matched by name with the run's data.
    Arguments that are None come from the run's recipe; for a hand-built model, from the defaults.

    Without ``labels``, the densities of a model with classes are those of their mixture, with those of each class beside.

    Args:
        labels: of a model with classes, one class for all rows or the class of each, (N,); None: not known.
        inverse_temperature: beta; ``calibrated``: what the run's last evaluation found.
        space: the space of the densities, see `LogDensities`; ``raw`` needs a dataset that states the Jacobian of its
            preprocessing.
        log_partition: how A is estimated, as in the recipe key ``eval.log_partition``.
        seed: seed of the base draws and populations behind A.
        bad_rows: ``skip`` leaves out rows that are not finite, with a warning; the others keep their numbers (`rows`).
        progress: True: show progress; False: do not; None: on a terminal or in a notebook.
        on_progress: called with each `gebm_kit.core.progress.Progress`; nothing is shown then.

    Raises:
        UsageError: the base has no density; rows of another type; ``raw`` without a Jacobian; labels of a
            model without classes, or not one class for each row.
        DataError: rows that do not fit the model or are not finite.
    """
    check_progress(progress, on_progress)
    model, dataset, settings = model_of(
        run_or_model,
        inverse_temperature=inverse_temperature,
        space=space,
        method=log_partition,
        seed=seed,
        device=device,
    )
    given = sourced(rows, "rows", model.data_shape, dataset, bad_rows)
    classes = labels_of_rows(model, labels, len(given.rows) if given.rows.ndim else 0)
    kept, numbers = usable_rows(given.rows, bad_rows, names=given.names, source=given.source, known=given.bad)
    classes = None if classes is None else numbers.chosen(classes)
    about = {"names": given.names, "source": given.source, "numbers": numbers, **settings}
    with progress_shown(progress, on_progress) as report:
        return densities(model, dataset, kept, labels=classes, on_progress=report, **about)
