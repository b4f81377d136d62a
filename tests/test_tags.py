"""Tags as texts, and as the attributes that hold them."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ramet import tags
from ramet.errors import CorruptError, InvalidError

keys = st.from_regex(tags.KEY_FORM, fullmatch=True)
values = st.text(st.characters(exclude_categories=["Cc", "Cs"]), max_size=200)


@given(held=st.dictionaries(keys, values, max_size=5))
def test_tags_come_back_from_attributes(held: dict[str, str]) -> None:
    assert tags.tags_of(tags.attributes_with(b"", held)) == held


def test_keys_of_others_are_kept() -> None:
    attributes = json.dumps({"policy": "daily", "tags": {"a": "1"}}).encode()
    changed = tags.attributes_with(attributes, {"b": "2"})
    assert json.loads(changed) == {"policy": "daily", "tags": {"b": "2"}}
    assert tags.attributes_with(b'{"tags":{"a":"1"}}', {}) == b""


def test_texts_are_read() -> None:
    assert tags.parse_tags(["env=prod", "note=a=b", "env=test"]) == {"env": "test", "note": "a=b"}
    assert tags.parse_selector(["env=prod", "team", "x="]) == {"env": "prod", "team": None, "x": ""}


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("env", "tag_form"),
        ("=x", "tag_key"),
        (" env=x", "tag_key"),
        ("k" * 64 + "=x", "tag_key"),
        ("env=" + "ä" * 513, "tag_value"),
        ("env=a\nb", "tag_value"),
        ("env=\udcff", "tag_not_utf8"),
    ],
)
def test_a_bad_tag_is_refused(text: str, code: str) -> None:
    with pytest.raises(InvalidError) as caught:
        tags.parse_tags([text])
    assert caught.value.code == code


def test_too_many_tags_are_refused() -> None:
    with pytest.raises(InvalidError) as caught:
        tags.check_tags({f"k{number}": "" for number in range(tags.TAGS_MAX + 1)})
    assert caught.value.code == "tag_count"


def test_a_selector_asks_for_keys_and_for_values() -> None:
    held = {"env": "prod", "team": "db"}
    assert tags.matches(held, {})
    assert tags.matches(held, {"env": "prod", "team": None})
    assert not tags.matches(held, {"env": "test"})
    assert not tags.matches(held, {"absent": None})


def test_attributes_that_are_not_json_are_damage() -> None:
    with pytest.raises(CorruptError):
        tags.tags_of(b"{")
