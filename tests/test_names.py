"""Names and patterns: what they may be, what they become, and the search for free numbers."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ramet.errors import InvalidError
from ramet.names import (
    COUNT_MAX,
    NumberedNames,
    check_snapshot_name,
    check_volume_name,
    expand_snapshot_names,
    expand_volume_names,
    format_time_name,
    is_uuid,
)

UUID = "01936f3a-7c1e-7d2b-8f00-0123456789ab"


def code_of(call: object, *arguments: object, **options: object) -> str:
    assert callable(call)
    with pytest.raises(InvalidError) as caught:
        call(*arguments, **options)
    return caught.value.code


@pytest.mark.parametrize("name", ["a", "vm-1", "A.b_c:d-E", "0", "-", "x" * 199, "lists", "e" * 36])
def test_good_names_are_accepted_for_both_kinds(name: str) -> None:
    check_volume_name(name)
    check_snapshot_name(name)


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("", "name_empty"),
        ("x" * 200, "name_too_long"),
        ("a b", "name_character"),
        ("a/b", "name_character"),
        ("a@b", "name_character"),
        ("a\n", "name_character"),
        ("\x00", "name_character"),
        ("ü", "name_character"),
        ("٣", "name_character"),
        ("\ud800", "name_character"),
        ("{n}", "name_character"),
        ("list", "name_reserved"),
        ("status", "name_reserved"),
        (UUID, "name_is_uuid"),
        (UUID.upper(), "name_is_uuid"),
    ],
)
def test_bad_volume_names_are_refused_by_what_is_wrong(name: str, code: str) -> None:
    assert code_of(check_volume_name, name) == code


def test_snapshot_names_may_hold_an_at_sign_and_be_longer() -> None:
    check_snapshot_name("vm-1@nightly")
    check_snapshot_name("x" * 255)
    assert code_of(check_snapshot_name, "x" * 256) == "name_too_long"
    assert code_of(check_snapshot_name, "list") == "name_reserved"
    assert code_of(check_snapshot_name, UUID) == "name_is_uuid"


@given(st.text(max_size=300))
def test_every_text_is_a_name_or_an_error_that_says_why(text: str) -> None:
    for check in (check_volume_name, check_snapshot_name):
        try:
            check(text)
        except InvalidError as error:
            assert error.code.startswith("name_")  # noqa: PT017 - either way is right.
        else:
            assert text.isascii()
            assert not is_uuid(text)


def test_patterns_count_from_one() -> None:
    assert expand_volume_names("vm-{n}", 3) == ["vm-1", "vm-2", "vm-3"]
    assert expand_volume_names("vm-{n}") == ["vm-1"]
    assert expand_volume_names("plain", 1) == ["plain"]
    assert expand_volume_names(["a-{n}", "b-{n}"], 2) == ["a-1", "a-2", "b-1", "b-2"]
    assert expand_volume_names(["a", "b"]) == ["a", "b"]
    assert expand_volume_names([]) == []
    assert expand_volume_names("{n}.{n}", 2) == ["1.1", "2.2"]


def test_patterns_know_the_time_and_a_clones_source() -> None:
    assert expand_volume_names("{volume}-{time}", time_text="T", volume="db") == ["db-T"]
    assert code_of(expand_volume_names, "{volume}-x") == "pattern_unknown"
    assert code_of(expand_volume_names, "{volume}-x", volume="db@1") == "name_character"


@pytest.mark.parametrize(
    ("pattern", "count", "code"),
    [
        ("vm", 2, "pattern_needs_number"),
        ("vm-{i}", 2, "pattern_unknown"),
        ("vm-{}", 2, "pattern_unknown"),
        ("vm-{n", 2, "pattern_needs_number"),
        ("vm-{n", 1, "name_character"),
        ("vm-{n}", 0, "count_range"),
        ("vm-{n}", -1, "count_range"),
        ("vm-{n}", COUNT_MAX + 1, "count_range"),
        ("vm {n}", 2, "name_character"),
        ("x" * 198 + "{n}", 10, "name_too_long"),
        (["a-{n}", "b-{n}"], COUNT_MAX, "count_range"),
    ],
)
def test_bad_patterns_are_refused(pattern: str | list[str], count: int, code: str) -> None:
    assert code_of(expand_volume_names, pattern, count) == code


def test_snapshot_patterns_follow_the_volumes() -> None:
    volumes = ["a", "b"]
    assert expand_snapshot_names("{volume}@nightly", volumes) == ["a@nightly", "b@nightly"]
    assert expand_snapshot_names("backup-{n}", volumes) == ["backup-1", "backup-2"]
    assert expand_snapshot_names("{volume}@{time}", ["a"], time_text="T") == ["a@T"]
    assert expand_snapshot_names(["x", "y"], volumes) == ["x", "y"]
    assert expand_snapshot_names("golden@1", ["golden"]) == ["golden@1"]
    assert expand_snapshot_names("x", []) == []


def test_bad_snapshot_patterns_are_refused() -> None:
    assert code_of(expand_snapshot_names, "nightly", ["a", "b"]) == "pattern_needs_volume"
    assert code_of(expand_snapshot_names, "{vm}", ["a"]) == "pattern_unknown"
    assert code_of(expand_snapshot_names, ["x"], ["a", "b"]) == "names_count"
    assert code_of(expand_snapshot_names, ["{volume}"], ["a"]) == "name_character"
    assert code_of(expand_snapshot_names, "{volume} x", ["a"]) == "name_character"
    assert code_of(expand_snapshot_names, "", ["a"]) == "name_empty"


def test_the_text_of_a_time_is_a_name_without_a_colon() -> None:
    text = format_time_name(1_795_520_605_000_000_000)
    assert text == "20261124T114325Z"
    check_volume_name(text)


class Namespace:
    """Names in use, and how often somebody asked about how many."""

    def __init__(self) -> None:
        self.names: set[str] = set()
        self.asked_count = 0

    def taken(self, names: list[str]) -> list[str]:
        self.asked_count += len(names)
        return [name for name in names if name in self.names]


def test_default_names_take_the_first_free_number() -> None:
    space = Namespace()
    space.names = {"a@1", "a@2", "a@4", "b@2"}
    numbered = NumberedNames(space.taken)
    assert numbered.first_free(["a", "b", "c"]) == ["a@3", "b@1", "c@1"]
    assert numbered.first_free([]) == []


def test_default_names_cost_the_same_with_ten_thousand_snapshots() -> None:
    space = Namespace()
    numbered = NumberedNames(space.taken)
    for number in range(1, 10_001):
        (name,) = numbered.first_free(["a"])
        assert name == f"a@{number}"
        space.names.add(name)
        numbered.learn([name])
    assert space.asked_count == 10_000


@given(st.lists(st.tuples(st.sampled_from("ab"), st.integers(0, 12)), max_size=60))
def test_default_names_are_the_first_free_whatever_comes_and_goes(
    steps: list[tuple[str, int]],
) -> None:
    space = Namespace()
    numbered = NumberedNames(space.taken)
    for volume, number in steps:
        name = f"{volume}@{number}"
        if number == 0:
            numbered.forget([volume])
        elif name in space.names:
            space.names.remove(name)
            numbered.forget([name])
        else:
            space.names.add(name)
            numbered.learn([name])
        for each in "ab":
            expected = next(n for n in range(1, 99) if f"{each}@{n}" not in space.names)
            assert numbered.first_free([each]) == [f"{each}@{expected}"]
