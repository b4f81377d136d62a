"""The tree of lineage: docs/internals/format.md, "Trees", I3 and I19.

Memory: a few numbers for each place.
"""

from collections.abc import Iterable

import numpy as np

from ramet.audit.objects import (
    DYING,
    EPOCH_SHIFT,
    LIVING,
    SNAPSHOT,
    Object,
    PlaceNode,
    decode_place,
)
from ramet.audit.report import Place, Report
from ramet.audit.structures import MalformedError, Reference

WRONG_MAX = 100


class Lineage:
    """The places of one checkpoint. `epoch_max`: no id is of a later one."""

    def __init__(self, report: Report, epoch_max: int) -> None:
        self._report, self._epoch_max = report, epoch_max
        self._numbers: list[int] = []
        self._parents: list[int] = []
        self._families: list[int] = []
        self._positions: list[int] = []
        self._orders: set[int] = set()
        self.living: dict[int, int] = {}
        """Numbers of living places by their ids."""
        self.roots: list[tuple[Reference, int]] = []
        """Of dying places."""
        self.dying_count = 0

    def take(self, key: int, value: bytes) -> None:
        """Take an entry of the tree."""
        try:
            place = decode_place(value)
        except MalformedError as error:
            self._bad(key, str(error))
            return
        self._numbers.append(key)
        self._parents.append(place.parent)
        self._families.append(place.family)
        self._positions.append(place.position)
        if key == 0 or place.family == 0:
            self._bad(key, f"its number {key} or its family {place.family} is none")
        if place.id >> EPOCH_SHIFT > self._epoch_max:
            self._bad(key, f"its id {place.id:#x} is of an epoch that was not taken")
        if place.state == DYING:
            self._take_dying(key, place)
        elif place.state == LIVING:
            if place.id == 0 or place.id in self.living:
                self._bad(key, f"its id {place.id:#x} is none, or another place's")
            self.living[place.id] = key

    def _take_dying(self, key: int, place: PlaceNode) -> None:
        self.dying_count += 1
        if place.dying_order == 0 or place.dying_order in self._orders:
            self._bad(key, f"its turn {place.dying_order} is none, or another place's")
        self._orders.add(place.dying_order)
        if place.root is not None and place.root.address:
            self.roots.append((place.root, place.height))

    def _bad(self, key: int, text: str) -> None:
        self._report.add("place", f"in the tree of lineage, place {key}: {text}", Place("nodes"))

    def hold(self, objects: Iterable[Object]) -> None:
        """Hold places against each other, and against the objects."""
        numbers = np.array(self._numbers, dtype=np.int64)
        parents = np.array(self._parents, dtype=np.int64)
        families = np.array(self._families, dtype=np.uint64)
        at = np.minimum(np.searchsorted(numbers, parents), max(len(numbers) - 1, 0))
        has_parent = parents != 0
        if len(numbers):
            missing = has_parent & (numbers[at] != parents)
            for place in numbers[missing][:WRONG_MAX].tolist():
                self._bad(place, "its parent is not there")
            strange = has_parent & ~missing & (families[at] != families)
            for place in numbers[strange][:WRONG_MAX].tolist():
                self._bad(place, "its parent has another family")
            positions = np.array(self._positions, dtype=np.uint64)
            above, is_moving = positions[at], positions == 0
            early = has_parent & ~missing & ((above == 0) | (above > positions) & ~is_moving)
            for place in numbers[early][:WRONG_MAX].tolist():
                self._bad(place, "its parent is no instant, or a later one")
            self._find_circles(numbers, np.where(has_parent & ~missing, at, -1))
        self._hold_objects(objects)

    def _hold_objects(self, objects: Iterable[Object]) -> None:
        positions = dict(zip(self._numbers, self._positions, strict=True))
        belonging = set()
        for it in objects:
            belonging.add(it.place)
            number = self.living.get(it.place)
            text = ""
            if number is None:
                text = f"'{it.name}' is at place {it.place:#x}, which does not live"
            elif (positions[number] != 0) != (it.kind == SNAPSHOT):
                text = f"'{it.name}' is at a place with the position {positions[number]:016x}"
            if text:
                self._report.add("place", text, Place("nodes"))
        for place_id in list(self.living.keys() - belonging)[:WRONG_MAX]:
            self._bad(self.living[place_id], "it lives, but belongs to no object")

    def _find_circles(self, numbers: np.ndarray, above: np.ndarray) -> None:
        # Jump twice as far each time: whoever has not left the tree after that goes in a circle.
        for _ in range(len(numbers).bit_length() + 1):
            above = np.where(above >= 0, above[above], -1)
        for place in numbers[above >= 0][:WRONG_MAX].tolist():
            self._bad(place, "it is its own ancestor")
