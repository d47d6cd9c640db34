"""An architecture is a checked, comparable value that survives JSON, and nothing else passes for one."""

import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from transprune.architecture import Architecture
from transprune.errors import SpaceError

SIZES = st.dictionaries(st.text(), st.integers(min_value=1), max_size=5)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(widths=SIZES, depths=SIZES)
def test_json_gives_back_the_same_architecture(widths, depths):
    architecture = Architecture(widths=widths, depths=depths)
    assert Architecture.from_json(architecture.to_json()) == architecture
    assert Architecture.from_json(json.dumps(architecture.to_json())) == architecture


def test_json_holds_the_sizes_by_name_and_nothing_else():
    assert Architecture({"stem": 4}, {"stage": 2}).to_json() == {"widths": {"stem": 4}, "depths": {"stage": 2}}


def test_other_keys_of_the_object_are_left_alone():
    value = {"format": 1, "model": {"name": "resnet20"}, "widths": {"a": 1}, "depths": {}}
    assert Architecture.from_json(value) == Architecture({"a": 1})


@given(widths=SIZES | JSON, depths=SIZES | JSON)
def test_any_other_value_under_the_right_keys_is_refused_with_a_space_error(widths, depths):
    value = {"widths": widths, "depths": depths}
    try:
        architecture = Architecture.from_json(value)
    except SpaceError:
        return
    assert architecture.to_json() == value
    assert all(type(size) is int and size >= 1 for sizes in value.values() for size in sizes.values())


@given(st.text() | JSON)
def test_any_other_object_or_text_is_refused_with_a_space_error(value):
    with pytest.raises(SpaceError, match="cannot read an architecture"):
        Architecture.from_json(value)


@pytest.mark.parametrize(
    "text",
    [
        *("", "{", "widths", '{"widths": {"a": 1}', '{"widths": {"a": 1}} trailing', "{'widths': {}}"),
        pytest.param("[" * 100_000, id="nested too deep"),
        pytest.param("1" * 5_000, id="number of too many digits"),
    ],
)
def test_text_that_is_not_json_is_refused_as_such(text):
    with pytest.raises(SpaceError, match="cannot read an architecture: the text is not JSON"):
        Architecture.from_json(text)


@pytest.mark.parametrize(
    ("value", "named"),
    [
        ({}, "widths = None"),
        ({"widths": {}}, "depths = None"),
        ({"depths": {}}, "widths = None"),
        ({"widths": [4], "depths": {}}, "widths = [4]"),
        ({"widths": {}, "depths": 3}, "depths = 3"),
        ([], "widths = None"),
        (None, "widths = None"),
        (b"{}", "widths = None"),
    ],
)
def test_a_missing_or_mistyped_part_is_named(value, named):
    with pytest.raises(
        SpaceError, match=rf"{re.escape(named)}; expected an object with the keys 'widths' and 'depths'"
    ):
        Architecture.from_json(value)


@pytest.mark.parametrize("size", [0, -1, 1.0, 2.5, True, "4", None, [4], float("nan")])
@pytest.mark.parametrize("kind", ["width", "depth"])
def test_a_size_that_is_no_whole_number_above_zero_is_refused_by_name(kind, size):
    with pytest.raises(SpaceError, match=rf"the {kind} of 'here' is {re.escape(repr(size))}; expected a whole number"):
        Architecture(**{f"{kind}s": {"here": size}})


def test_equal_architectures_are_one_key_whatever_the_order_of_their_names():
    first = Architecture({"a": 1, "b": 2}, {"s": 1, "t": 2})
    second = Architecture({"b": 2, "a": 1}, {"t": 2, "s": 1})
    assert first == second
    assert len({first, second, Architecture({"a": 1, "b": 2}), Architecture({"a": 1, "b": 1}, {"s": 1, "t": 2})}) == 3


def test_a_width_is_no_depth():
    assert Architecture(widths={"a": 1}) != Architecture(depths={"a": 1})


def test_later_changes_of_the_callers_maps_do_not_reach_it():
    widths, depths = {"a": 1}, {"s": 1}
    architecture = Architecture(widths, depths)
    architecture.to_json()["widths"]["a"] = 7
    widths["a"], depths["s"] = 2, 2
    assert architecture == Architecture({"a": 1}, {"s": 1})


def test_it_cannot_be_changed():
    with pytest.raises(AttributeError):
        Architecture({"a": 1}).widths = {}
