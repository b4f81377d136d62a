"""Snapshots between pools: send, receive, and streams kept in files.

Imports pool. Called by http and cli. docs/internals/stream.md says what travels; sender.py and
receiver.py are the two sides, stream.py the bytes between them, files.py reads them without a pool.
"""

from ramet.replication.files import FileSnapshot, verify_files
from ramet.replication.receiver import (
    Incomplete,
    Received,
    abandon,
    incomplete,
    position,
    receive,
)
from ramet.replication.sender import send

__all__ = [
    "FileSnapshot",
    "Incomplete",
    "Received",
    "abandon",
    "incomplete",
    "position",
    "receive",
    "send",
    "verify_files",
]
