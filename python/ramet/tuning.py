"""How much memory a pool's maps may take, and how often they are written out.

Reads the environment and touches no file. Imports errors and units only.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass

from ramet.errors import InvalidError
from ramet.units import parse_size

NODE_BUDGET_VARIABLE = "RAMET_NODE_BUDGET"
CHECKPOINT_LOG_VARIABLE = "RAMET_CHECKPOINT_LOG"
CHECKPOINT_BATCHES_VARIABLE = "RAMET_CHECKPOINT_BATCHES"
NODE_BUDGET_BYTES_MIN = 64 << 10


@dataclass(frozen=True)
class Tuning:
    """How much memory maps may take, and how often they are written out; 0: the default."""

    node_budget_bytes: int = 0
    checkpoint_log_bytes: int = 0
    checkpoint_batches: int = 0


def find_tuning(
    node_budget: str | int | None = None,
    checkpoint_log: str | int | None = None,
    environment: Mapping[str, str] = os.environ,
) -> Tuning:
    """Give the tuning: what is given, else the variables RAMET_NODE_BUDGET and so on.

    Sizes are bytes or a text such as "64MiB".
    Raises: InvalidError (codes size_malformed, node_budget_too_small,
    checkpoint_batches_malformed).
    Example: find_tuning("64MiB")
    """
    budget = _size(node_budget, environment.get(NODE_BUDGET_VARIABLE))
    if 0 < budget < NODE_BUDGET_BYTES_MIN:
        raise InvalidError(
            "node_budget_too_small",
            f"a node budget of {budget} bytes; hint: at least {NODE_BUDGET_BYTES_MIN}",
        )
    text = environment.get(CHECKPOINT_BATCHES_VARIABLE) or "0"
    if not text.isdecimal():
        raise InvalidError(
            "checkpoint_batches_malformed",
            f"{CHECKPOINT_BATCHES_VARIABLE} is '{text}'; hint: a number of batches",
        )
    return Tuning(
        budget, _size(checkpoint_log, environment.get(CHECKPOINT_LOG_VARIABLE)), int(text)
    )


def _size(given: str | int | None, variable: str | None) -> int:
    text = given if given is not None else variable
    return 0 if text is None or text == "" else parse_size(text)
