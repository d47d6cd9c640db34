"""Runs of blocks: which are found, what leaving blocks out gives, and why others are not searched."""

import copy
import json
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import oracles
import transprune
from small_networks import CLASSES, Classifier, ConvNorm, CoupledBlock, example, staged
from test_any_network import assert_close, outputs_of
from transprune.architecture import Architecture
from transprune.costs import MACS
from transprune.reading.execution import Program
from transprune.reading.inspection import inspect
from transprune.reading.macs import count_macs
from transprune.reports.run_record import read_record
from transprune.runs.preparation import _begun_space
from transprune.runtime import RunFolder
from transprune.runtime.structures import as_inputs
from transprune.shrinking.adapters import LeftOut
from transprune.shrinking.shrink import shrink
from transprune.shrinking.traced_network import CutRun, TracedNetwork, sizes_of
from transprune.space import SearchSpace
from transprune.tas.expected_cost import ExpectedCost
from transprune.tas.probabilities import certain
from transprune.tas.sampling import ArchitectureParameters, Drawn, Selection
from transprune.tas.supernet import Supernet

WIDTH, HEADS, TOKENS = 8, 2, 5
OUTSIDE = ("mask", "table", "memory", "time")


class Block(nn.Module):
    """A block that reads what comes in and any of the things that no block makes."""

    def __init__(self, kind: str, reads: frozenset[str]) -> None:
        super().__init__()
        self.kind, self.reads = kind, reads
        self.norm, self.first, self.second = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 12), nn.Linear(12, WIDTH)
        self.query, self.key = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.scale = nn.Linear(3, 12)

    def branch(self, tokens: Tensor, given: dict[str, Tensor]) -> Tensor:
        found = self.first(tokens)
        if "time" in self.reads:
            found = found * self.scale(given["time"])[:, None]
        found = self.second(found.relu())
        if "table" in self.reads:
            found = found * given["table"]
        if self.reads & {"mask", "memory"}:
            memory = given["memory"] if "memory" in self.reads else tokens
            weights = self.query(found) @ self.key(memory).transpose(1, 2)
            if "mask" in self.reads and "memory" not in self.reads:
                weights = weights + given["mask"]
            found = found + weights.softmax(-1) @ memory
        return found

    def forward(self, tokens: Tensor, given: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        if self.kind == "before":
            tokens = tokens + self.branch(self.norm(tokens), given)
        elif self.kind == "after":
            tokens = self.norm(tokens + self.branch(tokens, given))
        else:
            tokens = self.branch(tokens, given)
        return tokens, tokens.mean()  # as a cache that nobody reads


class Stack(nn.Module):
    """A stem, a run of blocks and a head. The blocks share what is made of the second input."""

    def __init__(
        self, blocks: int, kind: str = "before", reads: frozenset[str] = frozenset(OUTSIDE), way: str = "loop"
    ):
        super().__init__()
        self.way, self.reads = way, reads
        self.stem, self.head = nn.Linear(3, WIDTH), nn.Linear(WIDTH, CLASSES)
        self.memory, self.table = nn.Linear(3, WIDTH), nn.Parameter(torch.randn(TOKENS, WIDTH))
        self.blocks = nn.ModuleList(Block(kind, reads) for _ in range(blocks))

    def given(self, images: Tensor, lengths: Tensor) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}
        if "mask" in self.reads:
            is_there = torch.arange(TOKENS, device=lengths.device) < lengths[:, None]
            found["mask"] = (~is_there[:, None]).float() * -1e4
        if "table" in self.reads:
            found["table"] = self.table.cos()
        if "memory" in self.reads:
            found["memory"] = self.memory(images.flip(1))
        if "time" in self.reads:
            found["time"] = images.mean(1)
        return found

    def forward(self, images: Tensor, lengths: Tensor) -> Tensor:
        tokens, given = self.stem(images), self.given(images, lengths)
        if self.way == "slice":
            for block in self.blocks[: len(self.blocks)]:
                tokens = block(tokens, given)[0]
        else:
            for block in self.blocks:
                tokens, _ = block(tokens, given)
        return self.head(tokens.mean(1))


def inputs(samples: int) -> tuple[Tensor, Tensor]:
    drawn = torch.Generator().manual_seed(samples)
    return torch.randn(samples, TOKENS, 3, generator=drawn), 1 + torch.arange(samples) % TOKENS


def stack(blocks: int, *choices: object) -> Stack:
    torch.manual_seed(0)
    return Stack(blocks, *choices).eval()


def without(network: Stack, kept: list[int]) -> Stack:
    """The network written with fewer blocks."""
    smaller = copy.deepcopy(network)
    smaller.blocks = nn.ModuleList(smaller.blocks[place] for place in kept)
    return smaller


@settings(max_examples=5, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(
    blocks=st.integers(2, 4),
    kind=st.sampled_from(["before", "after", "plain"]),
    reads=st.frozensets(st.sampled_from(OUTSIDE)),
    way=st.sampled_from(["loop", "slice"]),
    depth=st.integers(1, 4),
)
def test_blocks_may_read_what_no_block_makes(blocks, kind, reads, way, depth):
    network = stack(blocks, kind, reads, way)
    space = inspect(network, inputs(2))
    [stage] = space.stages
    assert stage.blocks == tuple(f"blocks.{place}" for place in range(blocks))
    assert space.macs(space.full_architecture()) == count_macs(network, inputs(2))

    supernet = Supernet(network, space, inputs(2))
    for samples in (1, 3, 16):
        found = supernet(Selection.of(space, space.full_architecture()), *inputs(samples))
        assert_close([found], outputs_of(network, inputs(samples)), 1e-4)
    parameters = ArchitectureParameters(space)
    supernet.train()(parameters.sample(temperature=1.0), *inputs(16)).square().sum().backward()
    assert all(each.grad is not None and each.grad.isfinite().all() for each in parameters.parameters())

    depth = min(depth, blocks)
    architecture = Architecture(depths={"blocks": depth})
    student = shrink(network, architecture, inputs(2), reading=space.reading)
    assert type(student) is Stack
    for samples in (1, 16):
        assert torch.equal(student(*inputs(samples)), without(network, list(range(depth)))(*inputs(samples)))
    assert count_macs(student, inputs(2)) == space.macs(architecture)
    assert oracles.count_parameters(student) == space.params(architecture)


class OneForAll(Stack):
    """Runs one block again and again."""

    def forward(self, images: Tensor, lengths: Tensor) -> Tensor:
        tokens, given = self.stem(images), self.given(images, lengths)
        for _ in range(3):
            tokens, _ = self.blocks[0](tokens, given)
        return self.head(tokens.mean(1))


class Tapped(Stack):
    """Reads what each block hands on."""

    def forward(self, images: Tensor, lengths: Tensor) -> Tensor:
        tokens, given = self.stem(images), self.given(images, lengths)
        total = tokens
        for block in self.blocks:
            tokens, _ = block(tokens, given)
            total = total + tokens
        return self.head(total.mean(1))


class PassedOn(Stack):
    """Its blocks hand on two tensors."""

    def forward(self, images: Tensor, lengths: Tensor) -> Tensor:
        tokens, given = self.stem(images), self.given(images, lengths)
        for block in self.blocks:
            tokens, cache = block(tokens, given)
            given = {**given, "time": given["time"] + cache}
        return self.head(tokens.mean(1))


class Halving(Stack):
    """Every block but the first gets half of what the one before hands on."""

    def forward(self, images: Tensor, lengths: Tensor) -> Tensor:
        tokens, given = self.stem(images), self.given(images, lengths)
        for block in self.blocks:
            tokens = block(tokens, given)[0] * 0.5
        return self.head(tokens.mean(1))


class Tied(Stack):
    """Its blocks share a layer."""

    def __init__(self, blocks: int) -> None:
        super().__init__(blocks)
        for block in self.blocks[1:]:
            block.second.weight = self.blocks[0].second.weight


class SideBySide(Stack):
    """Its blocks all read the same, so that they are no run."""

    def forward(self, images: Tensor, lengths: Tensor) -> Tensor:
        tokens, given = self.stem(images), self.given(images, lengths)
        return self.head(sum(block(tokens, given)[0] for block in self.blocks).mean(1))


class Twice(Stack):
    """Runs all its blocks twice, one after another."""

    def forward(self, images: Tensor, lengths: Tensor) -> Tensor:
        tokens, given = self.stem(images), self.given(images, lengths)
        for block in (*self.blocks, *self.blocks):
            tokens, _ = block(tokens, given)
        return self.head(tokens.mean(1))


class Relative(Block):
    """The same block as another class."""


class Alternating(Stack):
    """Every second block is of another class."""

    def __init__(self, blocks: int) -> None:
        super().__init__(blocks)
        for place in range(1, blocks, 2):
            self.blocks[place] = Relative("sum", frozenset())


class OneAgain(Stack):
    """Its first block stands in its list once more."""

    def __init__(self, blocks: int) -> None:
        super().__init__(blocks)
        self.blocks.append(self.blocks[0])


@pytest.mark.parametrize(
    ("network", "reason"),
    [
        (lambda: OneAgain(2), "'blocks.0' stands in it 2 times, with the same weights"),
        (lambda: Twice(3), "'blocks.0' runs several times, with the same weights"),
        (lambda: Alternating(4), "'blocks.1' is of another class than 'blocks.0'"),
        (lambda: OneForAll(1), "its only block 'blocks.0' runs several times, with the same weights"),
        (lambda: Tapped(3), "something beside 'blocks.1' reads the output of 'blocks.0'"),
        (lambda: PassedOn(3), "'blocks.0' hands on 2 tensors rather than one"),
        (lambda: Halving(3), "'blocks.1' does not read the output of 'blocks.0'"),
        (lambda: Tied(3), "'blocks.0' shares parameters with other parts of the network"),
    ],
    ids=lambda each: "" if isinstance(each, str) else None,
)
def test_what_looks_like_a_run_of_blocks_and_is_not_searched_is_listed(network, reason):
    space = inspect(network().eval(), inputs(2))
    assert space.stages == ()
    assert {each.name: each.reason for each in space.fixed}.get("blocks") == reason


class Biased(Stack):
    """Its first block makes what the others read, as that of T5 does with the bias of its positions."""

    def forward(self, images: Tensor, lengths: Tensor) -> Tensor:
        tokens, given = self.stem(images), self.given(images, lengths)
        for block in self.blocks:
            tokens, cache = block(tokens, given)
            given = {"cache": cache, "time": given["time"] + cache, **given} if "cache" not in given else given
        return self.head((tokens + given["cache"]).mean(1))


def test_a_block_beside_a_run_is_listed_with_the_reason_why_it_stays():
    space = inspect(Biased(4, "before", frozenset({"time"})).eval(), inputs(2))
    assert [stage.blocks for stage in space.stages] == [("blocks.1", "blocks.2", "blocks.3")]
    reasons = {each.name: each.reason for each in space.fixed}
    assert reasons["blocks.0"] == "'blocks.0' hands on 2 tensors rather than one"
    assert not reasons.keys() & {"blocks", "blocks.1", "blocks.2", "blocks.3"}


class Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.layer = nn.Linear(width, width)

    def forward(self, tokens: Tensor) -> Tensor:
        return tokens + self.layer(tokens).tanh()


class Level(nn.Module):
    """Two blocks, and the step to the next level, as a stage of Swin; the last level has no step."""

    def __init__(self, width: int, wider: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([Residual(width), Residual(width)])
        self.step = nn.Linear(width, wider) if wider > width else nn.Identity()

    def forward(self, tokens: Tensor) -> Tensor:
        for block in self.blocks:
            tokens = block(tokens)
        return self.step(tokens)


@pytest.mark.parametrize(
    ("widths", "stages"),
    [
        ((4, 8, 8), ["1.blocks", "2.blocks"]),  # the last two give one shape, and the first of them reads another
        ((4, 4, 4), ["1-2"]),  # any of them may go
    ],
)
def test_blocks_inside_of_levels_are_searched_where_the_levels_read_other_shapes(widths, stages):
    levels = [Level(*pair) for pair in pairwise(widths)]
    network = nn.Sequential(nn.Linear(3, 4), *levels, nn.Linear(widths[-1], 2))
    space = inspect(nn.Sequential(network), torch.randn(2, 5, 3))
    assert [stage.name for stage in space.stages] == [f"0.{name}" for name in stages]
    reasons = {each.name: each.reason for each in space.fixed}
    assert ("0.1-2" in reasons) == (len(stages) == 2)


class Run(nn.ModuleList):
    """A list that runs its blocks, as networks that build their stages as classes of their own have."""

    def forward(self, tokens: Tensor) -> Tensor:
        for block in self:
            tokens = block(tokens)
        return tokens


def test_containers_of_ones_own_classes_are_searched():
    network = nn.Sequential(nn.Linear(3, 4), Run(Level(4, 4) for _ in range(3)), nn.Linear(4, 2)).eval()
    [stage] = inspect(network, torch.randn(2, 5, 3)).stages
    student = shrink(network, Architecture(blocks={"1": ("1.0", "1.2")}), torch.randn(2, 5, 3))
    assert (stage.depth, type(student[1]), len(student[1])) == (3, Run, 2)
    tokens = torch.randn(4, 7, 3)
    assert torch.equal(student(tokens), network[2](network[1][2](network[1][0](network[0](tokens)))))


class Bare(nn.Module):
    """Runs its blocks, which are its own modules, as the stages of timm's RegNet; or by their names."""

    def __init__(self, widths: tuple[int, ...], is_by_name: bool) -> None:
        super().__init__()
        self.is_by_name = is_by_name
        for place, pair in enumerate(pairwise(widths)):
            self.add_module(f"b{place + 1}", Level(*pair))

    def forward(self, tokens: Tensor) -> Tensor:
        if self.is_by_name:
            return self.b3(self.b2(self.b1(tokens)))
        for block in self.children():
            tokens = block(tokens)
        return tokens


@pytest.mark.parametrize("is_by_name", [False, True])
def test_a_module_that_only_runs_its_blocks_is_searched(is_by_name):
    network = nn.Sequential(nn.Linear(3, 4), Bare((4, 4, 4, 4), is_by_name), nn.Linear(4, 2)).eval()
    [stage] = inspect(network, torch.randn(2, 5, 3)).stages
    assert (stage.name, stage.blocks) == ("1", ("1.b1", "1.b2", "1.b3"))
    student = shrink(network, Architecture(blocks={"1": ("1.b1", "1.b3")}), torch.randn(2, 5, 3))
    assert type(student[1]) is Bare
    assert not any(name.startswith("1.b2.") for name in student.state_dict())
    tokens = torch.randn(4, 7, 3)
    assert torch.equal(student(tokens), network[2](network[1].b3(network[1].b1(network[0](tokens)))))


class ReadTwice(Bare):
    """Hands on what its first block gives as well."""

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        first = self.b1(tokens)
        return first, self.b2(first)


def test_a_module_that_only_runs_its_blocks_and_is_not_searched_is_listed():
    space = inspect(ReadTwice((3, 4, 4), is_by_name=True).eval(), torch.randn(2, 5, 3))
    reasons = {each.name: each.reason for each in space.fixed}
    assert reasons["the network itself"] == "something beside 'b2' reads the output of 'b1'"


def test_blocks_side_by_side_do_not_look_like_a_run():
    space = inspect(SideBySide(3).eval(), inputs(2))
    assert "blocks" not in {each.name for each in space.fixed}


class Counting(Stack):
    """Its forward counts its blocks, in one way or another; those that are kept are written by hand.

    Args:
        way: `range`: by their numbers. `slices`: half of them at a time. `table`: each reads the row of its number.
            `first`: the first one is asked for what it is. `backwards`: the last one runs first. `names`: each has one.
    """

    def __init__(self, way: str) -> None:
        super().__init__(4)
        self.counted, self.kept, self.count = way, {0, 1, 2, 3}, 4
        self.rows = nn.Linear(3, 4 * 3)
        if way == "names":
            self.blocks = nn.ModuleDict({f"block{place}": block for place, block in enumerate(self.blocks)})

    def forward(self, images: Tensor, lengths: Tensor) -> Tensor:
        tokens, given = self.stem(images), self.given(images, lengths)
        rows = self.rows(images.mean(1)).chunk(4, -1)
        for place, block in self.numbered():
            if place in self.kept:
                own = {**given, "time": rows[place]} if self.counted == "table" else given
                tokens, _ = block(tokens, own)
        return self.head(tokens.mean(1))

    def numbered(self):
        match self.counted:
            case "range":
                return [(place, self.blocks[place]) for place in range(self.count)]
            case "slices":
                return [*enumerate(self.blocks[:2]), *enumerate(self.blocks[2:], 2)]
            case "first":
                assert self.blocks[0].kind == "before"
            case "backwards":
                return reversed([*enumerate(self.blocks)])
            case "names":
                return enumerate(self.blocks.values())
        return enumerate(self.blocks)


@pytest.mark.parametrize("kept", [{1, 3}, {2}])
@pytest.mark.parametrize("way", ["range", "slices", "table", "first", "backwards", "names"])
def test_a_forward_that_counts_its_blocks_is_kept(way, kept):
    torch.manual_seed(0)
    network = Counting(way).eval()
    space = inspect(network, inputs(2), dimensions="depth")
    stage = next(each for each in space.stages if each.name == "blocks")
    assert stage.free == (0, 1, 2, 3)
    names = tuple(path for path in stage.blocks if int(path[-1]) in kept)
    architecture = Architecture(blocks={"blocks": names})
    student = shrink(network, architecture, inputs(2), reading=space.reading)
    assert type(student) is Counting
    by_hand = copy.deepcopy(network)
    by_hand.kept = kept
    for samples in (1, 16):
        assert torch.equal(student(*inputs(samples)), by_hand(*inputs(samples)))
    assert set(student.state_dict()) <= set(network.state_dict())
    assert count_macs(student, inputs(2)) == space.macs(architecture)
    assert oracles.count_parameters(student) == space.params(architecture)
    if way == "first" and len(names) > 1:  # what is left of a list is one
        assert [each.blocks for each in inspect(student, inputs(2), dimensions="depth").stages] == [names]


class Positions(nn.Module):
    """Looks up its positions by the number of each sample, as transformers do that are given no mask."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(3, WIDTH), nn.Linear(WIDTH, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        samples, tokens = images.shape[:2]
        positions = torch.arange(tokens)[None].expand(samples, -1)
        found = positions[torch.arange(samples)[:, None], torch.arange(tokens)[None]]
        return self.head((self.stem(images) * found[..., None].cos()).mean(1))


def test_a_table_with_an_entry_for_each_sample_follows_their_number():
    network = Positions().eval()
    space = inspect(network, inputs(2)[0])
    supernet = Supernet(network, space, inputs(2)[0])
    for samples in (1, 12, 40):
        found = supernet(Selection.of(space, space.full_architecture()), inputs(samples)[0])
        assert_close([found], outputs_of(network, inputs(samples)[:1]), 1e-4)


class Padded(nn.Module):
    """Torch's own encoder, which gives zeros for padded tokens where nothing is learned."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(WIDTH, HEADS, 12, batch_first=True, dropout=0.0)
        self.stem, self.head = nn.Linear(3, WIDTH), nn.Linear(WIDTH, CLASSES)
        self.encoder = nn.TransformerEncoder(layer, 3)

    def forward(self, images: Tensor, lengths: Tensor) -> Tensor:
        is_padded = torch.arange(TOKENS) >= lengths[:, None]
        return self.head(self.encoder(self.stem(images), src_key_padding_mask=is_padded).mean(1))


def test_an_encoder_with_a_padding_mask_keeps_its_class():
    network = Padded().eval()
    space = inspect(network, inputs(5))
    [stage] = space.stages
    student = shrink(network, Architecture(depths={stage.name: 2}), inputs(5), reading=space.reading)
    assert not isinstance(student, TracedNetwork)
    assert len(student.encoder.layers) == student.encoder.num_layers == 2


def test_a_padding_mask_counts_samples():
    """Though torch's fused encoder treats all samples otherwise where one has padding in front."""
    network, masks = Padded().eval(), torch.arange(TOKENS).expand(2, TOKENS) >= TOKENS - 1
    network.forward = lambda images, mask: network.head(
        network.encoder(network.stem(images), src_key_padding_mask=mask).mean(1)
    )
    assert inspect(network, (inputs(2)[0], masks)).reading.trace.axes == (0, 0)


# --- which blocks stay


def some_of(blocks: int) -> st.SearchStrategy[list[int]]:
    return st.lists(st.integers(0, blocks - 1), min_size=1, unique=True).map(sorted)


@settings(max_examples=5, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(
    kind=st.sampled_from(["before", "after", "plain"]),
    reads=st.frozensets(st.sampled_from(OUTSIDE)),
    kept=some_of(4),
    order=st.permutations(range(1, 4)),
    drawn=st.integers(0, 3),
)
def test_any_blocks_may_be_left_out(kind, reads, kept, order, drawn):
    network = stack(4, kind, reads)
    space = inspect(network, inputs(2), depths=lambda depth: range(1, depth + 1))
    [stage] = space.stages
    # What a plain block hands on is not of the group that its own inputs are, so the first one stays.
    assert stage.free == ((1, 2, 3) if kind == "plain" else (0, 1, 2, 3))
    order = [*order[:drawn], 0, *order[drawn:]] if kind != "plain" else [0, *order]
    kept = sorted({0, *kept}) if kind == "plain" else kept

    architecture = Architecture(blocks={"blocks": tuple(f"blocks.{place}" for place in kept)})
    student = shrink(network, architecture, inputs(2), reading=space.reading)
    wanted = without(network, kept)
    assert type(student) is Stack
    for samples in (1, 16):
        assert torch.equal(student(*inputs(samples)), wanted(*inputs(samples)))
    run = CutRun(network, Program(space.reading), sizes_of(architecture, space.reading))
    assert_close([run.program.run(run, inputs(5))], outputs_of(wanted, inputs(5)), 1e-5)
    assert count_macs(student, inputs(2)) == space.macs(architecture)
    assert oracles.count_parameters(student) == space.params(architecture)

    ordered = space.ordered({"blocks": order})
    supernet = Supernet(network, ordered, inputs(2)).eval()
    costs = ExpectedCost(ordered, MACS)
    for depth in range(1, 5):
        candidate = ordered.architecture_of([*(group.width for group in space.groups), depth])
        assert sorted(order[:depth]) == list(ordered.stages[0].kept_in(candidate))
        assert Architecture.from_json(json.dumps(candidate.to_json())) == candidate
        found = supernet(Selection.of(ordered, candidate), *inputs(3))
        assert_close([found], outputs_of(without(network, sorted(order[:depth])), inputs(3)), 1e-4)
        assert float(costs(certain(ordered, candidate))) == pytest.approx(ordered.macs(candidate))
    assert SearchSpace.from_json(json.dumps(ordered.to_json())) == replace(ordered, reading=None)


def mixture(space: SearchSpace, sizes: tuple[int, ...], weights: list[float]) -> Selection:
    """Candidates of the only stage, mixed; all else whole."""
    [stage] = space.stages
    whole = Selection.of(space, space.full_architecture())
    places = tuple(map(stage.candidates.index, sizes))
    return Selection(whole.widths, {stage.name: Drawn(sizes, places, torch.tensor(weights))})


def test_a_block_that_only_some_candidates_keep_is_mixed_with_what_it_reads():
    network = stack(3)
    space = inspect(network, inputs(2)).ordered({"blocks": (2, 0, 1)})
    found = Supernet(network, space, inputs(2)).eval()(mixture(space, (1, 3, 2), [0.2, 0.5, 0.3]), *inputs(4))

    images, lengths = inputs(4)
    tokens, given = network.stem(images), network.given(images, lengths)
    for block, share in zip(network.blocks, (0.8, 0.5, 1.0), strict=True):
        tokens = tokens + share * (block(tokens, given)[0] - tokens)
    assert_close([found.detach()], [network.head(tokens.mean(1)).detach()], 1e-5)


def residual_convolutions() -> nn.Module:
    torch.manual_seed(0)
    return Classifier(8, ConvNorm(3, 8), nn.Sequential(*(CoupledBlock(8) for _ in range(3))))


@pytest.mark.parametrize(
    ("network", "read"),
    [*((stack(3, kind), inputs) for kind in ("before", "after")), (residual_convolutions(), example)],
)
def test_one_block_more_at_the_end_is_mixed_as_in_the_paper(network, read):
    """Outputs, and the gradients of all weights, of the widths that are mixed as well, and of the depths."""
    plain = inspect(network, read(2))
    [stage] = plain.stages
    logits = nn.Parameter(torch.tensor([0.2, 1.0]))
    found = []
    for space in (plain, plain.ordered({stage.name: (0, 1, 2)})):
        torch.manual_seed(1)
        parameters, supernet = ArchitectureParameters(space), Supernet(network, space, read(2))
        drawn = parameters.sample(1.0, generator=torch.Generator().manual_seed(2))
        depths = {stage.name: Drawn((2, 3), (stage.candidates.index(2), stage.candidates.index(3)), logits.softmax(0))}
        outputs = supernet(Selection(drawn.widths, depths), *as_inputs(read(4)))
        outputs.square().sum().backward()
        parts = (logits, parameters.widths, *supernet.parameters())
        found.append([outputs.detach(), *(torch.zeros(0) if each.grad is None else each.grad for each in parts)])
        logits.grad = None
    assert found[0][1].abs().min() > 0
    assert_close(found[1], found[0], 1e-4)


@pytest.mark.parametrize("kind", ["before", "after"])
def test_where_a_choice_is_certain_blocks_are_mixed_as_in_the_paper(kind):
    network = stack(3, kind)
    plain = inspect(network, inputs(2))
    for weights, depth in (([1.0, 0.0], 2), ([0.0, 1.0], 3)):
        wanted = without(network, list(range(depth)))(*inputs(4))
        for space in (plain, plain.ordered({"blocks": (0, 1, 2)})):
            found = Supernet(network, space, inputs(2)).eval()(mixture(space, (2, 3), weights), *inputs(4))
            assert_close([found.detach()], [wanted.detach()], 1e-5)


class Weighed(Stack):
    """Its blocks add a given share of what they make."""

    def __init__(self, shares: tuple[float, ...]) -> None:
        super().__init__(len(shares), "before", frozenset({"table"}))
        with torch.no_grad():
            for block, share in zip(self.blocks, shares, strict=True):
                block.second.weight.mul_(share)
                block.second.bias.mul_(share)


def test_scores_say_which_block_goes_first():
    torch.manual_seed(0)
    network = Weighed((0.05, 1.0, 0.0, 0.3)).eval()
    space = inspect(network, inputs(2), dimensions="depth", depths=lambda depth: range(1, depth + 1))
    found = transprune.compress(network, [inputs(32)], "params=0.7", space=space, repair=False)
    assert found.space.stages[0].order == (1, 3, 0, 2)
    assert found.architecture.blocks["blocks"] == tuple(
        f"blocks.{place}" for place in found.space.stages[0].kept(found.architecture.depths["blocks"])
    )
    again = transprune.compress(network, [inputs(32)], "params=0.5", space=space, scores=found.scores, repair=False)
    assert again.space.stages == found.space.stages
    first = space.ordered({"blocks": range(4)})
    kept = transprune.compress(network, [inputs(32)], "params=0.7", space=first, repair=False).architecture
    assert first.stages[0].kept_in(kept) == tuple(range(kept.depths["blocks"]))


@torch.no_grad()
def test_the_loss_decides_between_blocks_where_it_is_asked_to():
    torch.manual_seed(0)
    network = Weighed((0.3, 1.0, 0.05)).eval()
    space = inspect(network, inputs(2), dimensions="depth", depths=lambda depth: range(1, depth + 1))
    right = without(network, [1, 2])(*inputs(32))
    found = [
        transprune.compress(
            network,
            [(*inputs(32), right)],
            "params=0.8",
            space=space,
            repair=False,
            task=transprune.regression(),
            by_loss=by_loss,
        ).architecture.blocks["blocks"]
        for by_loss in (False, True)
    ]
    assert found == [("blocks.0", "blocks.1"), ("blocks.1", "blocks.2")]


def test_blocks_of_other_widths_go_from_the_end():
    space = inspect(staged(), example())
    assert [stage.free for stage in space.stages] == [(), ()]
    found = transprune.compress(staged().eval(), torch.randn(16, 3, 8, 8), "macs=0.5")
    assert [stage.order for stage in found.space.stages] == [(), ()]
    assert not found.architecture.blocks


def test_a_block_that_writes_over_what_it_reads_stays_before_the_others():
    network = Classifier(6, ConvNorm(3, 6), nn.Sequential(*(WritesOver(6) for _ in range(3))))
    [stage] = inspect(network.eval(), example()).stages
    assert stage.free == ()


class WritesOver(CoupledBlock):
    """A residual block that begins with a ReLU in place."""

    def forward(self, features: Tensor) -> Tensor:
        return super().forward(features.relu_())


class Configuration:
    """What a network of `transformers` keeps of its sizes."""

    def __init__(self) -> None:
        self.num_hidden_layers, self.layer_types = 4, ["sliding", "full", "sliding", "full"]


class Numbered(Stack):
    """A network that looks like one of `transformers`: its blocks know their numbers, its configuration their kinds."""

    def __init__(self) -> None:
        super().__init__(4)
        self.config = Configuration()
        for place, block in enumerate(self.blocks):
            block.layer_idx, block.parts = place, nn.ModuleList([nn.Identity()])
            block.parts[0].layer_id = place  # as GPT-Neo calls it


class Base(nn.Module):
    """Stands for the base class of `transformers`."""


Base.__module__, Base.__qualname__ = "transformers.modeling_utils", "PreTrainedModel"


class Pretrained(Numbered, Base):
    """The same, below the base class."""


def test_a_student_of_transformers_numbers_the_layers_that_are_left():
    network = Pretrained().eval()
    kept = Architecture(blocks={"blocks": ("blocks.1", "blocks.2")})
    student = shrink(network, kept, inputs(2))
    assert (student.config.num_hidden_layers, student.config.layer_types) == (2, ["full", "sliding"])
    assert [(block.layer_idx, block.parts[0].layer_id) for block in student.blocks] == [(0, 0), (1, 1)]
    assert LeftOut(None, adds_nothing=True, replaced=[*student.blocks][1].parts).layer_idx == 1
    assert (network.config.num_hidden_layers, len(network.config.layer_types)) == (4, 4)
    assert [block.layer_idx for block in network.blocks] == [0, 1, 2, 3]


class OneKind:
    """As Mamba's: the kinds follow from the number."""

    num_hidden_layers = 4

    @property
    def layer_types(self) -> list[str]:
        return ["state"] * self.num_hidden_layers


def test_kinds_of_layers_that_follow_from_their_number_are_not_set():
    network = Pretrained().eval()
    network.config = OneKind()
    student = shrink(network, Architecture(blocks={"blocks": ("blocks.1", "blocks.2")}), inputs(2))
    assert student.config.layer_types == ["state"] * 2
    assert network.config.num_hidden_layers == 4


def test_a_run_goes_on_with_the_order_that_it_found(tmp_path):
    space = inspect(stack(4), inputs(2))
    ordered = space.ordered({"blocks": (3, 1, 0, 2)})
    folder = RunFolder.create(tmp_path / "run", {})
    folder.write_json("space.json", ordered.to_json())
    assert _begun_space(folder, space).stages == ordered.stages


def test_a_report_says_which_blocks_went(tmp_path):
    space = inspect(stack(4), inputs(2))
    folder = RunFolder.create(tmp_path / "run", {})
    folder.write_json("space.json", space.to_json())
    chosen = replace(space.full_architecture(), depths={}, blocks={"blocks": ("blocks.0", "blocks.3")})
    folder.write_json("architecture.json", chosen.to_json())
    record = read_record(folder.path)
    assert [(row.kept, row.blocks) for row in record.stages] == [(2, (0, 3))]
    dropped = {row.name.split(".")[1] for row in record.groups if row.is_dropped}
    assert dropped == {"1", "2"}
