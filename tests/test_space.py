"""The search space: its candidates, its architectures and their costs, and its way through JSON."""

import copy
import json
import random
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from small_networks import CASES, inline_residual, plain, residual, space_of, staged
from transprune.architecture import Architecture
from transprune.costs import COSTS, Channels, Layer
from transprune.errors import SpaceError
from transprune.runtime import RunFolder
from transprune.space import (
    PAPER_RATIOS,
    DepthStage,
    Fixed,
    SearchSpace,
    WidthGroup,
    depth_candidates,
    width_candidates,
)

PAPER_WIDTHS = {
    16: (4, 6, 8, 9, 11, 12, 14, 16),
    32: (9, 12, 16, 19, 22, 25, 28, 32),
    64: (19, 25, 32, 38, 44, 51, 57, 64),
    128: (38, 51, 64, 76, 89, 102, 115, 128),
    256: (76, 102, 128, 153, 179, 204, 230, 256),
    512: (153, 204, 256, 307, 358, 409, 460, 512),
    1024: (307, 409, 512, 614, 716, 819, 921, 1024),
    2048: (614, 819, 1024, 1228, 1433, 1638, 1843, 2048),
}
"""As the paper's own code gives them."""


@pytest.mark.parametrize("width", PAPER_WIDTHS)
def test_the_candidate_widths_are_the_papers(width):
    assert width_candidates(width) == PAPER_WIDTHS[width]


def test_the_candidate_widths_follow_the_papers_formula_with_duplicates_merged():
    assert width_candidates(8) == (2, 3, 4, 5, 6, 7, 8)
    for width in range(4, 2049):
        assert width_candidates(width) == tuple(sorted({int(width * ratio) for ratio in PAPER_RATIOS}))


def test_the_narrowest_layers_keep_at_least_one_channel():
    assert [width_candidates(width) for width in (1, 2, 3)] == [(1,), (1, 2), (1, 2, 3)]


def test_the_full_width_is_always_a_candidate():
    assert width_candidates(10, (0.5,)) == (5, 10)
    assert width_candidates(10, ()) == (10,)


def test_candidates_can_be_multiples_of_a_number():
    assert width_candidates(64, divisor=8) == (16, 24, 32, 40, 48, 56, 64)
    assert width_candidates(20, divisor=8) == (8, 16, 20)
    assert width_candidates(6, divisor=8) == (6,)


@given(width=st.integers(1, 4096), divisor=st.integers(1, 64))
def test_candidates_ascend_to_the_full_width_in_multiples(width, divisor):
    widths = width_candidates(width, divisor=divisor)
    assert widths[-1] == width
    assert list(widths) == sorted(set(widths))
    assert all(candidate % divisor == 0 and candidate >= 1 for candidate in widths[:-1])


@pytest.mark.parametrize(
    ("depth", "candidates"),
    [
        (1, (1,)),
        (2, (1, 2)),
        (3, (1, 2, 3)),
        (4, (1, 3, 4)),
        (5, (1, 3, 5)),
        (9, (1, 3, 5, 7, 9)),
        (18, (1, 3, 5, 7, 9, 11, 13, 15, 17, 18)),
    ],
)
def test_the_candidate_depths_are_the_papers(depth, candidates):
    assert depth_candidates(depth) == candidates


def test_a_layer_costs_its_textbook_macs_and_parameters():
    ends = {"inputs": Channels(3), "outputs": Channels(4)}
    conv = Layer(name="conv", operator="conv", kernel=9, positions=64, has_bias=True, **ends)
    depthwise = Layer(name="depthwise", operator="depthwise", kernel=9, positions=64, has_bias=True, **ends)
    linear = Layer(name="linear", operator="linear", has_bias=True, **ends)
    norm = Layer(name="norm", operator="norm", positions=64, has_bias=True, **ends)
    bare_norm = Layer(name="norm", operator="norm", positions=64, **ends)
    assert (conv.macs(5, 7), conv.params(5, 7)) == (64 * 7 * (9 * 5 + 1), 7 * (9 * 5 + 1))
    assert (depthwise.macs(5, 5), depthwise.params(5, 5)) == (64 * 5 * (9 + 1), 5 * (9 + 1))
    assert (linear.macs(5, 7), linear.params(5, 7)) == (7 * (5 + 1), 7 * (5 + 1))
    assert (norm.macs(5, 5), norm.params(5, 5)) == (0, 2 * 5)
    assert (bare_norm.macs(5, 5), bare_norm.params(5, 5)) == (0, 0)


def test_a_projection_costs_only_where_its_widths_differ():
    ends = {"inputs": Channels(3), "outputs": Channels(3)}
    bare = Layer(name="sum.shortcut", operator="projection", positions=64, **ends)
    normed = Layer(name="sum.shortcut", operator="projection", positions=64, has_norm=True, **ends)
    assert [bare.macs(5, 5), bare.params(5, 5)] == [0, 0]
    assert [normed.macs(5, 5), normed.params(5, 5)] == [0, 0]
    assert [bare.macs(5, 7), bare.params(5, 7)] == [64 * 5 * 7, 5 * 7]
    assert [normed.macs(5, 7), normed.params(5, 7)] == [64 * 5 * 7, 5 * 7 + 2 * 7]


def test_a_product_of_matrices_costs_macs_alone_and_a_parameter_parameters_alone():
    ends = {"inputs": Channels(3), "outputs": Channels(4)}
    product = Layer(name="attention.matmul", operator="matmul", positions=10, **ends)
    token = Layer(name="token", operator="parameter", kernel=2, **ends)
    assert [product.macs(5, 7), product.params(5, 7)] == [10 * 5 * 7, 0]
    assert [token.macs(5, 7), token.params(5, 7)] == [0, 2 * 5 * 7]


def test_a_bias_is_added_at_positions_of_its_own_where_these_differ():
    ends = {"inputs": Channels(3), "outputs": Channels(4)}
    layer = Layer(name="up", operator="conv", kernel=4, positions=16, bias_positions=64, has_bias=True, **ends)
    assert (layer.macs(5, 7), layer.params(5, 7)) == (16 * 4 * 5 * 7 + 64 * 7, 4 * 5 * 7 + 7)


def test_channels_beside_each_other_add_up():
    parts = Channels(4, "a", repeat=2, beside=(Channels(3), Channels(5, "b")))
    assert parts.parts == (Channels(4, "a", repeat=2), Channels(3), Channels(5, "b"))
    assert (parts.total, parts.sources) == (4 * 2 + 3 + 5, ("a", "b"))
    groups = [
        WidthGroup(name=name, width=width, candidates=(1, width), layers=(name,))
        for name, width in (("a", 4), ("b", 5))
    ]
    space = SearchSpace(groups=tuple(groups), stages=(), layers=())
    assert space.resolve(parts, Architecture({"a": 1})) == 1 * 2 + 3 + 5
    assert space.resolve(parts, Architecture({"a": 1, "b": 2})) == 1 * 2 + 3 + 2


def test_a_repeated_layer_costs_macs_again_but_no_parameters():
    layer = Layer(name="conv", operator="conv", inputs=Channels(3), outputs=Channels(4), is_repeat=True)
    assert (layer.macs(3, 4), layer.params(3, 4)) == (12, 0)


def test_full_smallest_and_random_architectures_name_every_group_and_stage():
    space = space_of(staged)
    full, smallest = space.full_architecture(), space.smallest_architecture()
    assert full == Architecture(
        widths={group.name: group.width for group in space.groups},
        depths={stage.name: stage.depth for stage in space.stages},
    )
    assert set(smallest.widths.values()) == {2, 3}
    assert set(smallest.depths.values()) == {1}
    drawn = space.random_architecture(5)
    assert drawn.widths.keys() == full.widths.keys()
    assert drawn.depths.keys() == full.depths.keys()


def test_random_architectures_repeat_by_seed_and_reach_every_candidate_alike():
    space = space_of(staged)
    state = random.getstate()
    drawn = [space.random_architecture(seed) for seed in range(1_000)]
    assert random.getstate() == state
    assert drawn == [space.random_architecture(seed) for seed in range(1_000)]
    for stage in space.stages:
        depths = [architecture.depths[stage.name] for architecture in drawn]
        share = 1 / len(stage.candidates)
        assert all(abs(depths.count(depth) / 1_000 - share) < 0.06 for depth in stage.candidates)
    first, second = ([architecture.widths[group.name] for architecture in drawn] for group in space.groups[:2])
    assert abs(sum((a == 2) == (b == 2) for a, b in zip(first, second, strict=True)) / 1_000 - 0.5) < 0.06


def test_the_number_of_architectures_is_the_product_of_all_candidates():
    assert space_of(staged).count() == 2**6 * 3 * 2
    assert SearchSpace(groups=(), stages=(), layers=()).count() == 1


@pytest.mark.parametrize("name", CASES)
def test_the_empty_architecture_is_the_unpruned_network(name):
    space = space_of(CASES[name])
    for cost in COSTS.values():
        assert space.cost(cost, Architecture()) == space.cost(cost, space.full_architecture())


def test_costs_of_the_staged_network_are_those_worked_out_by_hand():
    space = space_of(staged)
    names = [group.name for group in space.groups]
    widths = dict(zip(names, (4, 2, 4, 2, 6, 3), strict=True))
    architecture = Architecture(widths=widths, depths={"body.1": 2, "body.2": 2})
    # Stem 3→4, blocks 4→2 and 2→4 with projections (norms too), 4→6 at a quarter of the pixels with its shortcut
    # convolution, 6→3 with a projection, and the classifier.
    stem, blocks, down = 64 * 9 * 3 * 4, 64 * (9 * 4 * 2 + 4 * 2 + 9 * 2 * 4 + 2 * 4), 16 * (9 * 4 * 6 + 4 * 6)
    last, classifier = 16 * (9 * 6 * 3 + 6 * 3), 5 * (3 + 1)
    assert space.macs(architecture) == stem + blocks + down + last + classifier
    weights = 9 * 3 * 4 + 9 * 4 * 2 + 4 * 2 + 9 * 2 * 4 + 2 * 4 + 9 * 4 * 6 + 4 * 6 + 9 * 6 * 3 + 6 * 3
    norms = 2 * (4 + 2 + 2 + 4 + 4 + 6 + 3 + 3)
    assert space.params(architecture) == weights + norms + 5 * (3 + 1)


def test_what_follows_a_stage_sees_the_width_of_its_last_kept_block():
    space = space_of(staged)
    second = next(layer for layer in space.layers if layer.name == "body.2.0.main.conv")
    widths = dict(zip((group.name for group in space.groups), (4, 2, 4, 2, 6, 3), strict=True))
    seen = [space.resolve(second.inputs, Architecture(widths, {"body.1": depth})) for depth in (1, 2, 3)]
    assert seen == [2, 4, 2]
    assert space.resolve(second.inputs, Architecture(widths)) == 2
    assert space.resolve(second.inputs, Architecture()) == 4


def test_dropped_blocks_cost_nothing_whatever_their_widths():
    space = space_of(staged)
    third = next(group.name for group in space.groups if group.name.startswith("body.1.2."))
    cut = {"body.1": 2}
    assert space.macs(Architecture({third: 1}, cut)) == space.macs(Architecture({third: 4}, cut))
    assert space.macs(Architecture({third: 1})) != space.macs(Architecture({third: 4}))
    assert not space.is_kept("body.1.2.main.conv", Architecture(depths=cut))
    assert space.is_kept("body.1.1.main.conv", Architecture(depths=cut))
    assert space.is_kept("body.2.1.main.conv", Architecture(depths=cut))


def test_a_block_is_not_taken_for_another_whose_name_starts_alike():
    blocks, others = ("s.1", "s.10", "s.2"), ("s.conv", "s.20.conv", "s.2b", "stem")
    stage = DepthStage(name="s", depth=3, candidates=(1, 3), blocks=blocks, outputs=(Channels(4),) * 3)
    names = [*(f"{block}.conv" for block in blocks), *blocks, *others]
    layers = [Layer(name=name, operator="conv", inputs=Channels(4), outputs=Channels(4)) for name in names]
    space = SearchSpace(groups=(), stages=(stage,), layers=tuple(layers))
    assert [space.block_of(name) for name in names[:6]] == [(stage, 0), (stage, 1), (stage, 2)] * 2
    assert [space.block_of(name) for name in others] == [None] * 4


def test_widths_need_not_be_candidates():
    space = space_of(plain)
    assert space.macs(Architecture({"0": 3})) == 64 * 3 * (9 * 3 + 1) + 16 * 9 * 3 * 6 + 5 * (6 + 1)


@pytest.mark.parametrize(
    ("architecture", "message"),
    [
        (Architecture({"nowhere": 2}), r"it names the group 'nowhere', .* its groups are body\.0\.conv, "),
        (Architecture({}, {"nowhere": 2}), r"it names the stage 'nowhere', .* its stages are body\.1, body\.2"),
        (Architecture({}, {"body.1": 4}), r"it keeps 4 blocks of stage 'body\.1', which has 3"),
    ],
)
def test_an_architecture_of_another_network_is_refused(architecture, message):
    space = space_of(staged)
    for use in (space.macs, space.params, space.check):
        with pytest.raises(SpaceError, match=f"cannot use this architecture: {message}"):
            use(architecture)


def test_a_space_without_stages_says_so():
    with pytest.raises(SpaceError, match="its stages are none"):
        space_of(inline_residual).macs(Architecture(depths={"body.1": 1}))


SIZES = st.integers(1, 512)


def candidates_up_to(size):
    below = st.sets(st.integers(1, size), max_size=3)
    return below.map(lambda sizes: tuple(sorted({*sizes, size})))


@st.composite
def spaces(draw):
    """Spaces whose records fit together."""
    names = draw(st.lists(st.text(min_size=1, max_size=6), unique=True, max_size=5))
    split = draw(st.integers(0, len(names)))
    groups = []
    for name in names[:split]:
        width, layers = draw(SIZES), draw(st.lists(st.text(max_size=6), max_size=3))
        groups.append(
            WidthGroup(
                name=name,
                width=width,
                candidates=draw(candidates_up_to(width)),
                layers=(name, *layers),
                unit=draw(SIZES),
            )
        )
    part = st.one_of(
        st.builds(Channels, full=SIZES, repeat=SIZES),
        *(st.builds(Channels, full=st.just(g.width), source=st.just(g.name), repeat=SIZES) for g in groups),
    )
    beside = st.lists(part, max_size=2).map(tuple)
    fixed_or_group = st.builds(lambda first, others: replace(first, beside=others), part, beside)
    stages = []
    for name in names[split:]:
        depth = draw(st.integers(1, 4))
        outputs = tuple(draw(fixed_or_group) for _ in range(depth))
        blocks = tuple(f"{name}.{index}" for index in range(depth))
        choices = draw(candidates_up_to(depth))
        stages.append(DepthStage(name=name, depth=depth, candidates=choices, blocks=blocks, outputs=outputs))
    layer = st.builds(
        Layer,
        name=st.text(max_size=6),
        operator=st.sampled_from(["conv", "depthwise", "linear", "norm", "projection", "matmul", "parameter"]),
        inputs=fixed_or_group,
        outputs=fixed_or_group,
        kernel=SIZES,
        positions=SIZES,
        bias_positions=st.none() | SIZES,
        **dict.fromkeys(("has_bias", "has_norm", "is_repeat"), st.booleans()),
    )
    fixed = st.builds(Fixed, name=st.text(max_size=6), reason=st.text(max_size=6))
    return SearchSpace(
        groups=tuple(groups),
        stages=tuple(stages),
        layers=tuple(draw(st.lists(layer, max_size=3))),
        fixed=tuple(draw(st.lists(fixed, max_size=2))),
    )


@given(spaces())
def test_json_text_gives_back_any_space(space):
    assert SearchSpace.from_json(json.dumps(space.to_json())) == space


@pytest.mark.parametrize("name", CASES)
def test_json_text_gives_back_the_same_space(name):
    space = space_of(CASES[name])
    read = SearchSpace.from_json(json.dumps(space.to_json()))
    assert read == space
    assert read.macs(read.smallest_architecture()) == space.macs(space.smallest_architecture())


@pytest.mark.parametrize("name", CASES)
def test_parsed_json_gives_back_the_same_space(name):
    space = space_of(CASES[name])
    assert SearchSpace.from_json(json.loads(json.dumps(space.to_json()))) == space


def test_the_plain_values_themselves_give_back_the_same_space():
    space = space_of(staged)
    assert SearchSpace.from_json(space.to_json()) == space


@pytest.mark.parametrize("read", [lambda path: path.read_text(), lambda path: json.loads(path.read_text())])
def test_the_file_of_a_run_is_read_as_it_is(tmp_path, read):
    space = space_of(staged)
    path = RunFolder(tmp_path).write_json("space.json", space.to_json())
    assert "sha256" in path.read_text()
    assert SearchSpace.from_json(read(path)) == space


@pytest.mark.parametrize("text", ["", "{", "[1", "nonsense", pytest.param("1" * 5_000, id="number of too many digits")])
def test_text_that_is_not_json_is_refused_as_such(text):
    with pytest.raises(SpaceError, match="cannot read a search space: the text is not JSON"):
        SearchSpace.from_json(text)


def test_a_newer_format_is_refused_with_advice():
    with pytest.raises(SpaceError, match=r"it is of format 3, and this version reads up to 2; update transprune"):
        SearchSpace.from_json({"format": 3})


@pytest.mark.parametrize("value", [{}, {"format": 1}, {"format": "2"}, {"format": None}, [], None, 3, "3", "[]", '""'])
def test_another_format_is_refused(value):
    with pytest.raises(SpaceError, match=r"cannot read a search space: found format .*, expected 2; write it anew"):
        SearchSpace.from_json(value)


PLACES = [
    *[(key,) for key in ("groups", "stages", "layers", "fixed")],
    *[("groups", 0, key) for key in ("name", "width", "candidates", "layers", "unit")],
    *[("stages", 0, key) for key in ("name", "depth", "candidates", "blocks", "outputs")],
    *[("layers", 0, key) for key in ("name", "operator", "inputs", "outputs", "kernel", "positions", "has_bias")],
    *[("stages", 0, "outputs", 0, "full"), ("layers", 0, "inputs", "full"), ("fixed", 0, "reason")],
]


def at(value, place):
    for key in place:
        value = value[key]
    return value


@pytest.fixture
def value():
    return json.loads(json.dumps(space_of(staged).to_json()))


@pytest.mark.parametrize(
    "place", [place for place in PLACES if place[-1] not in ("fixed", "unit", "kernel", "positions", "has_bias")]
)
def test_a_missing_part_is_refused(value, place):
    del at(value, place[:-1])[place[-1]]
    with pytest.raises(SpaceError, match="cannot read a search space: "):
        SearchSpace.from_json(value)


@pytest.mark.parametrize("place", [place for place in PLACES if len(place) > 1])
def test_an_unknown_part_is_refused(value, place):
    at(value, place[:-1])["unheard_of"] = 1
    with pytest.raises(SpaceError, match=r"cannot read a search space: .*unheard_of"):
        SearchSpace.from_json(value)


@pytest.mark.parametrize("place", PLACES, ids=lambda place: ".".join(map(str, place)))
def test_a_part_of_another_type_is_refused(value, place):
    is_text, is_truth = place[-1] in ("name", "reason"), place[-1] == "has_bias"
    for wrong in (None, 2.5, 3 if is_text else "four", 1 if is_truth else True, {"a": 1}, [None]):
        malformed = copy.deepcopy(value)
        at(malformed, place[:-1])[place[-1]] = wrong
        with pytest.raises(SpaceError, match="cannot read a search space: "):
            SearchSpace.from_json(malformed)


@pytest.mark.parametrize(
    ("place", "wrong"),
    [
        (("groups", 0, "candidates"), []),
        (("groups", 0, "candidates"), [4, 2]),
        (("groups", 0, "candidates"), [0, 4]),
        (("groups", 0, "candidates"), [2, 3]),
        (("stages", 0, "candidates"), [1, 2, 3, 4]),
        (("stages", 0, "blocks"), ["body.1.0"]),
        (("stages", 0, "outputs"), []),
        (("layers", 0, "operator"), "convolution"),
        (("layers", 0, "outputs", "source"), "nowhere"),
        (("layers", 0, "outputs", "beside"), [{"full": 2, "source": "nowhere", "repeat": 1, "beside": []}]),
        (("stages", 0, "outputs", 2, "source"), "body.1"),
    ],
    ids=str,
)
def test_parts_that_contradict_each_other_are_refused(value, place, wrong):
    at(value, place[:-1])[place[-1]] = wrong
    with pytest.raises(SpaceError, match="cannot read a search space: "):
        SearchSpace.from_json(value)


def test_two_readings_of_one_network_are_equal():
    assert space_of(residual) == space_of.__wrapped__(residual)
