"""Checks of what every logger must do, which plugin authors run on their own."""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gebm_kit.core.interfaces import Logger
from gebm_kit.testing.conformance import conformance

CONFIG: dict[str, Any] = {
    "schema": 1,
    "base": {"name": "mlp", "hidden": [8, 8], "prior": "normal"},
    "train": {"steps": 10, "penalty": None},
    "loggers": [],
}
"""A resolved recipe, in small."""

COLUMNS = ["value", "gebm", "gebm_low"]
"""Columns of a table, as an evaluation has them."""

ROWS: list[list[str | float | None]] = [["mmd", 0.125, None], ["<b>|`{{ x }}` " + 300 * "y", math.nan, -math.inf]]
"""Rows of that table: cells are text, also text that looks like a program, numbers that are not finite, or empty."""

NAMES = (
    "<script>alert(1)</script>",
    "{{ 7 * 7 }}",
    "../../up",
    "/top//",
    "recall@5[x]",
    "recall#5[x]",
    "",
    300 * "long ",
)
"""Names of values that a metric of somebody else may have."""

SCALARS: tuple[tuple[int, dict[str, float]], ...] = (
    (1, {"energy_loss": 0.5, "kale": -0.25}),
    (1, {"eval.gebm.mmd": 0.125}),
    (2, {"energy_loss": math.nan, "base_loss": math.inf}),
    (3, {}),
    (3, {f"eval.gebm.{name}": 1.0 for name in NAMES}),
)
"""Calls of ``log`` as training makes them: one step twice with other names, values that are not finite, no
values, and `NAMES`."""


@conformance("logger")
def check_logger(logger: Logger) -> None:
    """Check a logger by the calls of a short run: the recipe, losses, an evaluation, a picture, a table, the end.

    Nothing may fail: not on values that are not finite, on a step that comes twice with other names, nor on names that
    hold slashes, brackets or markup. Nothing that is handed in may be changed, nor may variables of the environment.

    Args:
        logger: the logger, made for this check; it is closed at the end.

    Raises:
        AssertionError: a check failed (also because a package is missing), or the signature is not valid; the message names
            logger, package, file and line.

    Example:
        >>> import tempfile
        >>> from gebm_kit.loggers.jsonl import Jsonl
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     check_logger(Jsonl(run_directory=Path(folder)))
    """
    bound = vars(type(logger)).get("check")
    assert bound is None or isinstance(bound, classmethod), "check must be a class method: it is called before building"
    environment = dict(os.environ)
    type(logger).check()
    with _unchanged("log_config", CONFIG) as config:
        logger.log_config(config)
    for step, scalars in SCALARS:
        with _unchanged("log", scalars) as given:
            logger.log(step, given)
    with tempfile.TemporaryDirectory(prefix="gebm-kit-check-") as folder:
        picture = Path(folder) / "picture.png"
        _draw(picture)
        content = picture.read_bytes()
        logger.log_image(3, "picture", picture)
        assert picture.is_file() and picture.read_bytes() == content, "log_image changes or removes the picture"
    columns, rows = list(COLUMNS), [list(row) for row in ROWS]
    logger.log_table(3, "evaluation", columns, rows)
    assert (columns, repr(rows)) == (COLUMNS, repr(ROWS)), "log_table changes what it is given"
    logger.close()
    changed = {name for name, value in os.environ.items() if environment.get(name) != value}
    assert not changed, f"the logger leaves the environment changed: {', '.join(sorted(changed))}"


class _unchanged:  # a context manager, used like a function
    """A copy of a mapping for a call, which must leave it as it is."""

    def __init__(self, method: str, mapping: Mapping[str, Any]) -> None:
        self._method, self._before = method, repr(dict(mapping))
        self._given = dict(mapping)

    def __enter__(self) -> dict[str, Any]:
        return self._given

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        assert kind is not None or repr(self._given) == self._before, f"{self._method} changes what it is given"


def _draw(path: Path) -> None:
    from PIL import Image

    Image.new("RGB", (4, 4)).save(path)
