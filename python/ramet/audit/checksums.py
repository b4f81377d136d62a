"""CRC-32C of pages, blocks and nodes: docs/internals/format.md, "Checksums".

Pure. Invariant: written from that page alone, and shares nothing with what wrote the bytes.
"""

import struct
from functools import cache
from typing import NamedTuple

import google_crc32c
import numpy as np
import numpy.typing as npt

U32Array = npt.NDArray[np.uint32]
U64Array = npt.NDArray[np.uint64]

BLOCK_BYTES = 4096
COMPLEMENT = 0xFFFFFFFF
IDENTITY_BYTES = 32  # Seed, segment, slot and block index, 8 bytes each.
SLOT_AT = 16
INDEX_AT = 24
BYTE = np.uint32(0xFF)


def crc(content: bytes) -> int:
    """Compute the CRC-32C of `content`.

    Example: crc(b"123456789")
    """
    return int(google_crc32c.value(content))


def crc_after(before: int, content: bytes) -> int:
    """Compute the CRC-32C of what gave `before`, followed by `content`.

    Example: crc_after(crc(b"1234"), b"56789")
    """
    return int(google_crc32c.extend(before, content))


def page_crc(page: bytes, at: int, nonce: int, place: int) -> int:
    """Compute the checksum of a page that holds it in the four bytes at `at`.

    Example: page_crc(bytes(4096), 16, 0, 0)
    """
    head = struct.pack("<QQ", nonce, place) + page[:at] + bytes(4)
    return crc_after(crc(head), page[at + 4 :])


def node_crc(seed: int, address: int, node: bytes) -> int:
    """Compute the checksum that a reference holds of a node.

    Example: node_crc(1, 1 << 28 | 64, bytes(16))
    """
    return crc_after(crc(struct.pack("<QQ", seed, address)), node)


def block_crc(content: bytes, seed: int, segment: int, slot: int, block_index: int) -> int:
    """Compute the checksum of a block, or with index 0 of a record.

    Example: block_crc(bytes(4096), seed=1, segment=1 << 12, slot=2, block_index=0)
    """
    return crc_after(crc(content), struct.pack("<4Q", seed, segment, slot, block_index))


class _Tables(NamedTuple):
    """What each byte of a state, a slot and an index gives to the state after an identity.

    A CRC is linear: the state after some bytes is the sum of what the state before gives and what
    each byte gives. So thousands of blocks are folded by a few look-ups for all of them at once.
    """

    state: list[U32Array]
    slot: list[U32Array]
    block_index: list[U32Array]


@cache
def _tables() -> _Tables:
    zeros = bytes(IDENTITY_BYTES)

    def of_state(state: int) -> int:
        return crc_after(state ^ COMPLEMENT, zeros) ^ COMPLEMENT

    def of_byte(at: int, value: int) -> int:
        identity = bytearray(zeros)
        identity[at] = value
        return crc_after(COMPLEMENT, bytes(identity)) ^ COMPLEMENT

    def column(at: int) -> U32Array:
        return np.array([of_byte(at, value) for value in range(256)], dtype=np.uint32)

    shifted = [[of_state(value << 8 * byte) for value in range(256)] for byte in range(4)]
    return _Tables(
        [np.array(values, dtype=np.uint32) for values in shifted],
        [column(SLOT_AT + byte) for byte in range(2)],
        [column(INDEX_AT + byte) for byte in range(8)],
    )


def fold_blocks(
    bytes_crcs: U32Array, seed: int, segment: int, slots: U32Array, block_indexes: U64Array
) -> U32Array:
    """Compute the checksums of many blocks of one segment from the CRC-32C of each one's bytes.

    The arrays are equally long, one entry for each block.
    Example: fold_blocks(np.array([7], np.uint32), 1, 1 << 12, slots, block_indexes)
    """
    tables = _tables()
    identity = struct.pack("<4Q", seed, segment, 0, 0)
    state = bytes_crcs ^ np.uint32(COMPLEMENT)
    out = np.full(len(state), crc_after(COMPLEMENT, identity) ^ COMPLEMENT, dtype=np.uint32)
    for byte, table in enumerate(tables.state):
        out ^= table[(state >> np.uint32(8 * byte)) & BYTE]
    for byte, table in enumerate(tables.slot):
        out ^= table[(slots >> np.uint32(8 * byte)) & BYTE]
    index_bits = int(block_indexes.max()).bit_length() if len(block_indexes) else 0
    for byte in range((index_bits + 7) // 8):
        part = (block_indexes >> np.uint64(8 * byte)) & np.uint64(0xFF)
        out ^= tables.block_index[byte][part.astype(np.intp)]
    return out ^ np.uint32(COMPLEMENT)
