"""Tags: short labels on volumes and snapshots; with the root hash they are an object's attributes.

Pure. Imports errors only. Invariant: attributes that this module did not write keep every key it
does not know.
"""

import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

from ramet.errors import CorruptError, InvalidError

KEY_FORM = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/:-]{0,62}")
VALUE_BYTES_MAX = 1024
TAGS_MAX = 64
ATTRIBUTES_BYTES_MAX = 64 << 10  # Of an object, tags and root hash together.

Tags = Mapping[str, str]
Selector = Mapping[str, str | None]


def parse_tags(texts: Iterable[str]) -> dict[str, str]:
    """Read `K=V` texts; a key that is given twice has its last value.

    Raises: InvalidError for a text without `=`, and as `check_tags`.
    Example: parse_tags(["env=prod", "team=db"])
    """
    tags = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals:
            raise InvalidError("tag_form", f"{text!r} is not a tag; hint: give KEY=VALUE")
        tags[key] = value
    return check_tags(tags)


def parse_selector(texts: Iterable[str]) -> dict[str, str | None]:
    """Read `K=V`, which asks for that value, and `K`, which asks for any.

    Raises: InvalidError, as `check_tags`.
    Example: parse_selector(["env=prod", "team"])
    """
    selector: dict[str, str | None] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        check_tags({key: value})
        selector[key] = value if equals else None
    return selector


def check_tags(tags: Tags) -> dict[str, str]:
    """Give `tags` if all of them may be stored.

    A key has 1 to 63 of `A-Z a-z 0-9 . _ / : -` and starts with a letter or digit; a value is up to
    1,024 bytes of UTF-8 without control characters; an object has up to 64.
    Raises: InvalidError.
    Example: check_tags({"env": "prod"})
    """
    if len(tags) > TAGS_MAX:
        raise InvalidError("tag_count", f"{len(tags)} tags; hint: at most {TAGS_MAX}")
    for key, value in tags.items():
        if not KEY_FORM.fullmatch(key):
            raise InvalidError(
                "tag_key",
                f"{key!r} is no key of a tag;"
                " hint: 1 to 63 of A-Z a-z 0-9 . _ / : -, a letter or digit first",
            )
        try:
            length = len(value.encode())
        except UnicodeEncodeError as error:
            raise InvalidError(
                "tag_not_utf8", f"the value of tag '{key}' is not UTF-8; hint: encode it"
            ) from error
        if length > VALUE_BYTES_MAX or any(letter < " " or letter == "\x7f" for letter in value):
            raise InvalidError(
                "tag_value",
                f"the value of tag '{key}' has {length} bytes;"
                f" hint: at most {VALUE_BYTES_MAX}, without control characters",
            )
    return dict(tags)


def tags_of(attributes: bytes) -> dict[str, str]:
    """Give the tags that an object's attributes hold.

    Raises: CorruptError where the attributes are not what Ramet writes.
    Example: tags_of(b"")
    """
    return dict(_read(attributes).get("tags", {}))


def attributes_with(attributes: bytes, tags: Tags) -> bytes:
    """Give the attributes with these tags in place of those they hold; nothing left: no bytes.

    Example: attributes_with(b"", {"env": "prod"})
    """
    held = _read(attributes)
    held.pop("tags", None)
    if tags:
        held["tags"] = dict(tags)
    return _write(held)


def tags_and_root_of(attributes: bytes) -> tuple[dict[str, str], str | None]:
    """Give the tags and the root hash that an object's attributes hold, in one look.

    Raises: CorruptError where the attributes are not what Ramet writes.
    Example: tags_and_root_of(b"")
    """
    held = _read(attributes)
    return dict(held.get("tags", {})), held.get("root")


def attributes_with_root(attributes: bytes, root: str) -> bytes:
    """Give the attributes with this root hash in place of what they hold.

    Example: attributes_with_root(b"", "00" * 32)
    """
    return _write({**_read(attributes), "root": root})


def matches(tags: Tags, selector: Selector) -> bool:
    """Say whether all that the selector asks for is there: keys, and values where it has them.

    Example: matches({"env": "prod"}, {"env": None})
    """
    return all(
        key in tags and (value is None or tags[key] == value) for key, value in selector.items()
    )


def _write(held: Mapping[str, Any]) -> bytes:
    return json.dumps(held, ensure_ascii=False, separators=(",", ":")).encode() if held else b""


def _read(attributes: bytes) -> dict[str, Any]:
    if not attributes:
        return {}
    try:
        held = json.loads(attributes)
    except ValueError as error:
        raise CorruptError(
            "attributes_unreadable", f"attributes are not JSON: {error}; hint: set the tags anew"
        ) from error
    return held if isinstance(held, dict) else {}
