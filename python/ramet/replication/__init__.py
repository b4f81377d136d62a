"""Snapshots between pools: send, receive, and streams kept in files.

Imports pool. Called by http and cli. docs/internals/stream.md says what travels; sender.py and
receiver.py are the two sides, stream.py the bytes between them, files.py reads them without a pool;
sync.py keeps a remote in step.
"""

from ramet.replication.files import FileSnapshot, verify_files
from ramet.replication.groups import Group, bases_of, missing
from ramet.replication.link import How, Link
from ramet.replication.receiver import (
    Incomplete,
    Received,
    abandon,
    incomplete,
    position,
    receive,
)
from ramet.replication.sender import send
from ramet.replication.sync import have_of, sync

__all__ = [
    "FileSnapshot",
    "Group",
    "How",
    "Incomplete",
    "Link",
    "Received",
    "abandon",
    "bases_of",
    "have_of",
    "incomplete",
    "missing",
    "position",
    "receive",
    "send",
    "sync",
    "verify_files",
]
