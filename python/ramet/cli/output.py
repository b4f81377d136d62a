"""How results and errors are printed: for people, or as one JSON value.

Imports errors and units. Invariant: with --json stdout is exactly one JSON value, errors included
nowhere but on stderr.
"""

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from ramet.errors import RametError
from ramet.records import Damage, Lock, ObjectRecord, ObjectSpace, Sharing
from ramet.units import format_age, format_duration, format_size

if TYPE_CHECKING:
    from ramet.audit.report import Finding


def print_json(value: object) -> None:
    """Print a value."""
    print(json.dumps(value, indent=2 if sys.stdout.isatty() else None))


def print_error(error: RametError, as_json: bool) -> None:
    """Print an error on stderr."""
    print(json.dumps(error.to_json()) if as_json else f"error: {error}", file=sys.stderr)


def print_names(items: Iterable[object], names: Iterable[str], as_json: bool) -> None:
    """Print what a bulk command made: one name a line, or all of it as JSON."""
    if as_json:
        print_json([item.to_json() for item in items])  # type: ignore[attr-defined]
        return
    text = "\n".join(names)
    if text:
        print(text)


def describe_holders(told: str, finding: "Damage | Finding") -> str:
    """Give lines: what was found, as it is told, and who needs what is damaged."""
    lines = [told]
    lines += [
        f"  needed by '{it.name}', {it.length_bytes} bytes from {it.offset_bytes} on"
        for it in finding.holders
    ]
    left_count = finding.holders_count - len(finding.holders)
    if left_count:
        lines.append(f"  and {left_count} more")
    return "\n".join(lines)


def print_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print columns; those whose head ends in `>` are set to the right."""
    right = [title.endswith(">") for title in head]
    lines = [[title.rstrip(">") for title in head], *rows]
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    for line in lines:
        cells = [
            cell.rjust(width) if on_right else cell.ljust(width)
            for cell, width, on_right in zip(line, widths, right, strict=True)
        ]
        print("  ".join(cells).rstrip())


def print_objects(
    records: Sequence[ObjectRecord],
    spaces: Mapping[str, ObjectSpace] | None,
    as_json: bool,
    now_ns: int,
) -> None:
    """Print a listing; with `spaces`, by UUID, also what is its own of each, and shared."""
    if as_json:
        print_json([record.to_json() | _own(record, spaces) for record in records])
        return
    head = ["NAME", "SIZE>", "MAPPED>", "AGE>", "ATTACHED>"]
    with_locks = any(record.lock for record in records)
    rows = []
    for record in records:
        own = [] if spaces is None else _own_texts(spaces.get(record.uuid))
        rows.append(
            [
                record.name,
                format_size(record.size_bytes),
                format_size(record.mapped_bytes),
                *own,
                format_age(record.created_ns, now_ns),
                str(record.attached_count or ""),
                *([lock_text(record.lock)] if with_locks else []),
            ]
        )
    if spaces is not None:
        head[3:3] = ["EXCLUSIVE>", "SHARED>"]
    print_table(head + (["LOCKED"] if with_locks else []), rows)


def _own(
    record: ObjectRecord, spaces: Mapping[str, ObjectSpace] | None
) -> dict[str, dict[str, int] | None]:
    if spaces is None:
        return {}
    space = spaces.get(record.uuid)
    return {"space": space.to_json() if space else None}


def _own_texts(space: ObjectSpace | None) -> list[str]:
    if space is None:
        return ["?", "?"]  # New, or its map is damaged.
    return [format_size(space.exclusive_bytes), format_size(space.shared_bytes)]


def print_object(
    record: ObjectRecord,
    takes: tuple[ObjectSpace, Sharing] | None,
    uri: str,
    now_ns: int,
    as_json: bool,
) -> None:
    """Print one object with what it takes (None: its map is damaged) and its NBD URI."""
    space, sharing = takes or (None, None)
    mapped_bytes = space.mapped_bytes if space else record.mapped_bytes
    own = {
        "exclusive_bytes": space.exclusive_bytes if space else None,
        "shared_bytes": space.shared_bytes if space else None,
    }
    if as_json:
        told = {"sharing": sharing.to_json() if sharing else None, "nbd_uri": uri}
        print_json({**record.to_json(), "mapped_bytes": mapped_bytes, **own, **told})
        return
    age = format_age(record.created_ns, now_ns)
    lines = {
        "name": record.name,
        "kind": record.kind,
        "uuid": record.uuid,
        "size": _size_text(record.size_bytes),
        "mapped": _size_text(mapped_bytes),
        "exclusive": _size_text(own["exclusive_bytes"]),
        "shared": _size_text(own["shared_bytes"]),
        "created": f"{record.created} ({age if age == 'just now' else f'{age} ago'})",
        "parent": record.parent or "-",
        "source": record.source or "-",
        "tags": " ".join(f"{key}={value}" for key, value in record.tags.items()) or "-",
        **(_snapshot_lines(record) if record.kind == "snapshot" else {}),
        "attached": str(record.attached_count),
        "nbd": uri,
    }
    for title, text in lines.items():
        print(f"{title + ':':11}{text}")
    if sharing is not None:
        _print_sharing(sharing)


def _snapshot_lines(record: ObjectRecord) -> dict[str, str]:
    return {"root": record.root or "-", "locked": lock_text(record.lock) or "-"}


def lock_text(lock: Lock | None) -> str:
    """Say how long a lock runs on; its clock may stop meanwhile, so it may be longer.

    Example: lock_text(None)
    """
    if lock is None:
        return ""
    left = format_duration(lock.remaining_seconds)
    return f"until {lock.until[:19]}Z or later, for {left} ({lock.mode})"


def _print_sharing(sharing: Sharing) -> None:
    if sharing.fragments_per_mib is not None:
        print(f"{'scattered:':11}{sharing.fragments_per_mib} fragments per MiB")
    title = "with:"
    for sharer in sharing.sharers:
        print(f"{title:11}{format_size(sharer.shared_bytes)} shared with '{sharer.name}'")
        title = ""


def _size_text(size_bytes: int | None) -> str:
    if size_bytes is None:
        return "unknown: a map is damaged; see `ramet check`"
    return f"{format_size(size_bytes)} ({size_bytes} bytes)"
