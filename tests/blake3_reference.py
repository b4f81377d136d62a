"""BLAKE3 and the root hash, written down slowly from their documents, to hold the product against.

Invariant: shares no code with the product, and takes no shortcut but remembering hashes.
"""

from collections.abc import Iterator
from functools import cache

IV = (
    0x6A09E667,
    0xBB67AE85,
    0x3C6EF372,
    0xA54FF53A,
    0x510E527F,
    0x9B05688C,
    0x1F83D9AB,
    0x5BE0CD19,
)
PERMUTATION = (2, 6, 3, 10, 7, 0, 4, 13, 1, 11, 12, 5, 9, 14, 15, 8)
CHUNK_START, CHUNK_END, PARENT, ROOT = 1, 2, 4, 8
CHUNK_BYTES, PART_BYTES = 1024, 64
MIXED = (
    (0, 4, 8, 12),
    (1, 5, 9, 13),
    (2, 6, 10, 14),
    (3, 7, 11, 15),
    (0, 5, 10, 15),
    (1, 6, 11, 12),
    (2, 7, 8, 13),
    (3, 4, 9, 14),
)
WORD = 0xFFFFFFFF

Words = tuple[int, ...]


def compress(value: Words, part: bytes, counter: int, flags: int) -> Words:
    words = [int.from_bytes(part[at : at + 4].ljust(4, b"\0"), "little") for at in range(0, 64, 4)]
    state = [*value, *IV[:4], counter & WORD, counter >> 32, len(part), flags]
    for _ in range(7):
        for turn, (a, b, c, d) in enumerate(MIXED):
            for word, right_d, right_b in (
                (words[2 * turn], 16, 12),
                (words[2 * turn + 1], 8, 7),
            ):
                state[a] = (state[a] + state[b] + word) & WORD
                mixed = state[d] ^ state[a]
                state[d] = (mixed >> right_d | mixed << 32 - right_d) & WORD
                state[c] = (state[c] + state[d]) & WORD
                mixed = state[b] ^ state[c]
                state[b] = (mixed >> right_b | mixed << 32 - right_b) & WORD
        words = [words[at] for at in PERMUTATION]
    return tuple(state[at] ^ state[at + 8] for at in range(8))


def to_bytes(value: Words) -> bytes:
    return b"".join(word.to_bytes(4, "little") for word in value)


def chunk(content: bytes, counter: int, root: int) -> Words:
    value: Words = IV
    starts = range(0, max(len(content), 1), PART_BYTES)
    for at in starts:
        flags = CHUNK_START if at == 0 else 0
        if at == starts[-1]:
            flags |= CHUNK_END | root
        value = compress(value, content[at : at + PART_BYTES], counter, flags)
    return value


def subtree(content: bytes, counter: int, root: int) -> Words:
    if len(content) <= CHUNK_BYTES:
        return chunk(content, counter, root)
    # The left side is the largest full tree that leaves something for the right.
    left = CHUNK_BYTES
    while 2 * left < len(content):
        left *= 2
    parts = (
        to_bytes(subtree(content[:left], counter, 0)),
        to_bytes(subtree(content[left:], counter + left // CHUNK_BYTES, 0)),
    )
    return compress(IV, b"".join(parts), 0, PARENT | root)


@cache
def blake3(content: bytes) -> bytes:
    return to_bytes(subtree(content, 0, ROOT))


@cache
def zeros(level: int) -> bytes:
    return blake3(bytes(4096)) if level == 0 else blake3(zeros(level - 1) * 8)


def node(blocks: dict[int, bytes], level: int, index: int) -> bytes:
    first, end = index * 8**level, (index + 1) * 8**level
    mine = {at: block for at, block in blocks.items() if first <= at < end}
    if not mine:
        return zeros(level)
    if level == 0:
        return blake3(mine[index])
    return blake3(b"".join(node(mine, level - 1, 8 * index + child) for child in range(8)))


def root_hash(size_bytes: int, parts: dict[int, bytes]) -> str:
    """Give the root of what reads as zeros but for `parts`: bytes by their offset, apart."""
    blocks: dict[int, bytearray] = {}
    for offset, byte in (
        (offset + at, byte) for offset, part in parts.items() for at, byte in enumerate(part)
    ):
        if byte:
            blocks.setdefault(offset // 4096, bytearray(4096))[offset % 4096] = byte
    top = node({at: bytes(block) for at, block in blocks.items()}, 12, 0)
    return blake3(b"RAMETRT1" + size_bytes.to_bytes(8, "little") + top).hex()


def image_parts(image: bytes) -> Iterator[tuple[int, bytes]]:
    """Give the blocks of an image that are not zeros."""
    for offset in range(0, len(image), 4096):
        block = image[offset : offset + 4096]
        if any(block):
            yield offset, block


def root_of_image(image: bytes) -> str:
    return root_hash(len(image), dict(image_parts(image)))
