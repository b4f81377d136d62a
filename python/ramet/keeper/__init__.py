"""The keeper: does what the policies of a pool say, in time.

Imports policies, replication, pool. Called by service, http and cli. Docs:
docs/internals/policies.md. All decisions are in policies; here is what acts.
"""

from ramet.keeper.keeper import Keeper
from ramet.keeper.plain import PlainKeeper
from ramet.keeper.status import PolicyStatus, RemoteStatus, Report

__all__ = ["Keeper", "PlainKeeper", "PolicyStatus", "RemoteStatus", "Report"]
