"""The keeper's verbs with plain values in and out, as a service's client has them.

Imports keeper. Called by http and cli. Invariant: results go to JSON and back unchanged, so that a
command does not have to know who holds the pool.
"""

from typing import Any

from ramet.keeper.keeper import Keeper


class PlainKeeper:
    """See `Keeper` for what the verbs do."""

    def __init__(self, keeper: Keeper) -> None:
        self.keeper = keeper
        self.rules_text = keeper.rules_text
        self.set_rules = keeper.set_rules
        self.change_rules = keeper.change_rules
        self.wake_remotes = keeper.wake

    def policies(self) -> list[dict[str, Any]]:
        """See `Keeper`."""
        return [it.to_json() for it in self.keeper.policies()]

    def plan(self, days: float) -> list[dict[str, Any]]:
        """See `Keeper`."""
        return [it.to_json() for it in self.keeper.plan(days)]

    def run_policies(self, names: list[str]) -> list[dict[str, Any]]:
        """See `Keeper.run`."""
        return [it.to_json() for it in self.keeper.run(names)]

    def remotes(self) -> list[dict[str, Any]]:
        """See `Keeper`."""
        return [it.to_json() for it in self.keeper.remotes()]
