"""Chains of stamped writes across many volumes, and what a crash may leave of them.

A chain writes stamp 1, 2, 3, ... to its volumes in turn, each after the answer to the one before.
So of each chain a crash keeps stamps up to some level, and the levels of all chains must be a
prefix of one log: before a stamp was sent, its writer noted how far every chain was answered, and
where the stamp is, all of that is.
Invariant: a stamp's bytes name chain, round and number, so that what a crash took never comes back.
"""

import struct
import threading
from dataclasses import dataclass, field

BLOCK_BYTES = 4096
SECTOR_BYTES = 512
FLOOD_BYTES = 256 << 10
_STAMP = struct.Struct("<IIQ")  # Chain, round, number.

Levels = tuple[int, ...]


@dataclass(frozen=True)
class Layout:
    """Where a chain writes: `slots_count` places in each volume, one after the other, again."""

    base_bytes: int
    stride_bytes: int
    slot_bytes: int
    slots_count: int


# Two chains write whole blocks; two write sectors of the same blocks in turn, so that their merges
# meet. The last one has a volume of its own, and overwrites all of it each time.
LAYOUTS = (
    Layout(0, BLOCK_BYTES, BLOCK_BYTES, 6),
    Layout(6 * BLOCK_BYTES, BLOCK_BYTES, BLOCK_BYTES, 6),
    Layout(12 * BLOCK_BYTES, 2 * SECTOR_BYTES, SECTOR_BYTES, 8),
    Layout(12 * BLOCK_BYTES + SECTOR_BYTES, 2 * SECTOR_BYTES, SECTOR_BYTES, 8),
)
FLOOD = len(LAYOUTS)
CHAINS_COUNT = FLOOD + 1
AREA_BYTES = 14 * BLOCK_BYTES


@dataclass
class Chains:
    """What was written to `volumes`, and to the volume of the flood, which is the last."""

    volumes: list[str]
    round_number: int = 0
    rounds: list[list[int]] = field(default_factory=lambda: [[0] for _ in range(CHAINS_COUNT)])
    """The round of each stamp, by chain."""
    known: list[list[Levels]] = field(
        default_factory=lambda: [[(0,) * CHAINS_COUNT] for _ in range(CHAINS_COUNT)]
    )
    """What was answered before each stamp was sent, by chain."""
    acked: list[int] = field(default_factory=lambda: [0] * CHAINS_COUNT)
    floor: list[int] = field(default_factory=lambda: [0] * CHAINS_COUNT)
    """What must survive."""

    def __post_init__(self) -> None:
        self._lock = threading.Lock()

    def next_write(self, chain: int) -> tuple[int, int, bytes]:
        """Note the next stamp of a chain. Result: index of its volume, offset, bytes."""
        stamp = len(self.rounds[chain])
        self.known[chain].append(tuple(self.acked))
        self.rounds[chain].append(self.round_number)
        if chain == FLOOD:
            return len(self.volumes) - 1, 0, self.data_of(chain, stamp, FLOOD_BYTES)
        layout, targets_count = LAYOUTS[chain], len(self.volumes) - 1
        slot = stamp // targets_count % layout.slots_count
        offset_bytes = layout.base_bytes + slot * layout.stride_bytes
        return stamp % targets_count, offset_bytes, self.data_of(chain, stamp, layout.slot_bytes)

    def ack(self, chain: int, fua: bool) -> None:
        """Note the answer to the last stamp of a chain."""
        self.acked[chain] = len(self.rounds[chain]) - 1
        if fua:
            self.raise_floor({chain: self.acked[chain]})

    def acked_in(self, volume: int) -> dict[int, int]:
        """Give the newest answered stamp of each chain in one volume."""
        targets_count = len(self.volumes) - 1
        if volume == targets_count:
            return {FLOOD: self.acked[FLOOD]}
        newest = {}
        for chain in range(FLOOD):
            acked = self.acked[chain]
            newest[chain] = max(0, acked - (acked - volume) % targets_count)
        return newest

    def raise_floor(self, levels: dict[int, int]) -> None:
        """Note that these stamps are durable: they were answered before a flush was sent."""
        with self._lock:
            for chain, level in levels.items():
                self.floor[chain] = max(self.floor[chain], level)

    def lose(self, levels: Levels, round_number: int) -> None:
        """Go on after a crash that left `levels`; what opening found is durable."""
        self.round_number = round_number
        for chain, level in enumerate(levels):
            del self.rounds[chain][level + 1 :]
            del self.known[chain][level + 1 :]
        self.acked, self.floor = list(levels), list(levels)

    def data_of(self, chain: int, stamp: int, length_bytes: int) -> bytes:
        if stamp == 0:
            return bytes(length_bytes)
        filled = _STAMP.pack(chain, self.rounds[chain][stamp], stamp)
        return filled * (length_bytes // _STAMP.size)

    def content_of(self, volume: int, levels: Levels) -> bytearray:
        """Give what a volume of chains holds at `levels`, up to `AREA_BYTES`."""
        content = bytearray(AREA_BYTES)
        targets_count = len(self.volumes) - 1
        for chain, layout in enumerate(LAYOUTS):
            newest = levels[chain] - (levels[chain] - volume) % targets_count
            for stamp in range(newest, 0, -targets_count):
                turn = stamp // targets_count
                if turn <= newest // targets_count - layout.slots_count:
                    break
                at = layout.base_bytes + turn % layout.slots_count * layout.stride_bytes
                length_bytes = layout.slot_bytes
                content[at : at + length_bytes] = self.data_of(chain, stamp, length_bytes)
        return content

    def levels_of(self, contents: list[bytes], what: str) -> tuple[Levels, bool]:
        """Find the one prefix of the log that all volumes are at.

        `contents`: of each volume, the flood's last. Result: the level of each chain, and whether
        the flood's write after that is there in part, which only a crash may do.
        """
        levels = []
        for layout in LAYOUTS:
            places = range(
                layout.base_bytes,
                layout.base_bytes + layout.slots_count * layout.stride_bytes,
                layout.stride_bytes,
            )
            levels.append(max(stamp_at(it, at) for it in contents[:-1] for at in places))
        level, partly = self._flood_level(contents[-1], what)
        levels.append(level)
        for chain, level in enumerate(levels):
            sent = len(self.rounds[chain]) - 1
            assert level <= sent, f"{what}: chain {chain} is at {level}, {sent} were sent"
        found = tuple(levels)
        for volume, content in enumerate(contents[:-1]):
            self._check_content(volume, content, found, what)
        newest = [*levels[:-1], levels[-1] + partly]
        for chain, level in enumerate(newest):
            known = self.known[chain][level]
            assert all(a >= b for a, b in zip(found, known, strict=True)), (
                f"{what}: {found} is no prefix of the log: stamp {level} of chain {chain} is there,"
                f" and was sent when {known} had been answered"
            )
        return found, partly

    def _flood_level(self, content: bytes, what: str) -> tuple[int, bool]:
        blocks = [content[at : at + BLOCK_BYTES] for at in range(0, FLOOD_BYTES, BLOCK_BYTES)]
        stamps = [stamp_at(block, 0) for block in blocks]
        newest, oldest = max(stamps), min(stamps)
        assert newest - oldest <= 1, f"{what}: the flood holds {sorted(set(stamps))}"
        for index, (stamp, block) in enumerate(zip(stamps, blocks, strict=True)):
            expected = self.data_of(FLOOD, stamp, BLOCK_BYTES)
            assert block == expected, f"{what}: block {index} of the flood is torn or came back"
        return oldest, newest > oldest

    def _check_content(self, volume: int, content: bytes, levels: Levels, what: str) -> None:
        expected = self.content_of(volume, levels)
        if content == expected:
            return
        for at in range(0, AREA_BYTES, SECTOR_BYTES):
            found, wanted = (it[at : at + SECTOR_BYTES] for it in (content, expected))
            assert found == wanted, (
                f"{what}: {self.volumes[volume]} at byte {at} holds {_STAMP.unpack(found[:16])}"
                f" where {_STAMP.unpack(wanted[:16])} belongs, at {levels}"
            )


def stamp_at(content: bytes, at: int) -> int:
    number: int = _STAMP.unpack_from(content, at)[2]
    return number
