"""The tree of lineage: docs/internals/format.md, "Trees", I19.

Memory: a few numbers for each place.
"""

import numpy as np

from ramet.audit.objects import DYING, LIVING, PlaceNode, decode_place
from ramet.audit.report import Place, Report
from ramet.audit.structures import MalformedError, Reference

WRONG_MAX = 100


class Lineage:
    """The places of one checkpoint."""

    def __init__(self, report: Report) -> None:
        self._report = report
        self._numbers: list[int] = []
        self._parents: list[int] = []
        self._families: list[int] = []
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
        if place.state == DYING:
            self._take_dying(place)
        elif place.state == LIVING:
            if place.id == 0 or place.id in self.living:
                self._bad(key, f"its id {place.id:#x} is none, or another place's")
            self.living[place.id] = key

    def _take_dying(self, place: PlaceNode) -> None:
        self.dying_count += 1
        if place.root is not None and place.root.address:
            self.roots.append((place.root, place.height))

    def _bad(self, key: int, text: str) -> None:
        self._report.add("place", f"in the tree of lineage, place {key}: {text}", Place("nodes"))

    def hold(self, places: dict[int, str]) -> None:
        """Hold places against each other, and against `places`: names of objects by place."""
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
            self._find_circles(numbers, np.where(has_parent & ~missing, at, -1))
        for place_id, name in places.items():
            if place_id not in self.living:
                text = f"'{name}' is at place {place_id:#x}, which does not live"
                self._report.add("place", text, Place("nodes"))
        for place_id in list(self.living.keys() - places.keys())[:WRONG_MAX]:
            self._bad(self.living[place_id], "it lives, but belongs to no object")

    def _find_circles(self, numbers: np.ndarray, above: np.ndarray) -> None:
        # Jump twice as far each time: whoever has not left the tree after that goes in a circle.
        for _ in range(len(numbers).bit_length() + 1):
            above = np.where(above >= 0, above[above], -1)
        for place in numbers[above >= 0][:WRONG_MAX].tolist():
            self._bad(place, "it is its own ancestor")
