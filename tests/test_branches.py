"""Blocks that are several residual sums: each branch can be left out by itself."""

import copy
import json

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from test_any_network import assert_close, outputs_of
from test_depth import mixture
from transprune.architecture import Architecture
from transprune.budget import limits_of
from transprune.costs import MACS, PARAMS
from transprune.errors import SpaceError
from transprune.reading.inspection import inspect
from transprune.reading.macs import count_macs
from transprune.reports.report import report_page
from transprune.reports.run_record import read_record
from transprune.runtime import RunFolder
from transprune.shrinking.adapters import LeftOut
from transprune.shrinking.shrink import shrink
from transprune.shrinking.traced_network import TracedNetwork
from transprune.space import SearchSpace, branch_candidates
from transprune.tas.baselines import uniform_architecture
from transprune.tas.expected_cost import ExpectedCost
from transprune.tas.probabilities import certain
from transprune.tas.sampling import Selection
from transprune.tas.supernet import Supernet

WIDTH, TOKENS = 8, 5


class Attention(nn.Module):
    """Attention that returns its weights as well, as those of transformers do."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, tokens: Tensor, mask: Tensor) -> tuple[Tensor, None]:
        query, key, value = self.qkv(tokens).unflatten(-1, (3, 2, -1)).permute(2, 0, 3, 1, 4)
        found = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        return self.out(found.transpose(1, 2).flatten(2)), None


class Block(nn.Module):
    """One to three branches, each normed before or after; what is kept is written by hand.

    Args:
        branches: `a`: attention that reads a mask, `e`: an expansion, `g`: a gated one with a factor of its own.
        is_after: Whether each sum is normed, rather than what a branch reads.
    """

    def __init__(self, branches: str, is_after: bool) -> None:
        super().__init__()
        self.branches, self.is_after, self.kept = branches, is_after, set(range(len(branches)))
        for place, kind in enumerate(branches):
            self.add_module(f"norm{place}", nn.LayerNorm(WIDTH))
            if kind == "a":
                self.add_module(f"attention{place}", Attention())
            else:
                self.add_module(f"up{place}", nn.Linear(WIDTH, 12))
                self.add_module(f"down{place}", nn.Linear(12, WIDTH))
            if kind == "g":
                self.add_module(f"gate{place}", nn.Linear(WIDTH, 12, bias=False))
                self.register_parameter(f"factor{place}", nn.Parameter(torch.rand(WIDTH)))

    def branch(self, place: int, tokens: Tensor, mask: Tensor) -> Tensor:
        kind = self.branches[place]
        if kind == "a":
            found, _ = getattr(self, f"attention{place}")(tokens, mask=mask)
            return found
        hidden = getattr(self, f"up{place}")(tokens)
        if kind == "g":
            hidden = F.silu(getattr(self, f"gate{place}")(tokens)) * hidden
        found = getattr(self, f"down{place}")(hidden.relu())
        return found * getattr(self, f"factor{place}") if kind == "g" else found

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        for place in range(len(self.branches)):
            if place in self.kept:
                norm = getattr(self, f"norm{place}")
                if self.is_after:
                    tokens = norm(tokens + self.branch(place, tokens, mask))
                else:
                    tokens = self.branch(place, norm(tokens), mask) + tokens
        return tokens


class Stack(nn.Module):
    """A stem, blocks and a head; all blocks read a mask."""

    def __init__(self, blocks: int, branches: str, is_after: bool) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(3, WIDTH), nn.Linear(WIDTH, 4)
        self.blocks = nn.ModuleList(Block(branches, is_after) for _ in range(blocks))

    def forward(self, inputs: Tensor, mask: Tensor) -> Tensor:
        tokens = self.stem(inputs)
        for block in self.blocks:
            tokens = block(tokens, mask)
        return self.head(tokens)


def inputs(samples: int) -> tuple[Tensor, Tensor]:
    drawn = torch.Generator().manual_seed(samples)
    return torch.randn(samples, TOKENS, 3, generator=drawn), torch.randn(samples, 1, TOKENS, TOKENS, generator=drawn)


def stack(blocks: int = 3, branches: str = "ae", is_after: bool = False) -> Stack:
    torch.manual_seed(0)
    network = Stack(blocks, branches, is_after).eval()
    for parameter in network.parameters():  # so that no norm is the identity
        nn.init.normal_(parameter, mean=0.1, std=0.5)
    return network


def without(network: Stack, kept: list[int]) -> Stack:
    """The network with only some of its branches, as one would write it."""
    written = copy.deepcopy(network)
    for place, block in enumerate(written.blocks):
        each = len(block.branches)
        block.kept = {branch for branch in range(each) if place * each + branch in kept}
    return written


@settings(max_examples=4, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(
    blocks=st.integers(2, 3),
    branches=st.sampled_from(["ae", "eg", "aea"]),
    is_after=st.booleans(),
    drawn=st.randoms(use_true_random=False),
)
def test_leaving_out_branches_gives_the_network_that_was_written_without_them(blocks, branches, is_after, drawn):
    network = stack(blocks, branches, is_after)
    space = inspect(network, inputs(2), removable="branches")
    [stage] = space.stages
    assert stage.depth == blocks * len(branches)
    assert stage.candidates == tuple(range(1, stage.depth + 1))
    kept = sorted(drawn.sample(range(stage.depth), drawn.randint(1, stage.depth)))
    architecture = Architecture(blocks={stage.name: tuple(stage.blocks[place] for place in kept)})
    expected = without(network, kept)
    student = shrink(network, architecture, inputs(2), reading=space.reading)
    for samples in (2, 7):
        assert_close(outputs_of(student, inputs(samples)), outputs_of(expected, inputs(samples)))
    assert not isinstance(student, TracedNetwork) or "g" in branches  # whose factor the forward reads by name
    assert space.params(architecture) == sum(each.numel() for each in student.parameters())
    assert space.macs(architecture) == count_macs(expected, inputs(2)) == count_macs(student, inputs(2))

    ordered = space.ordered({stage.name: [*kept, *(place for place in range(stage.depth) if place not in kept)]})
    assert ordered.architecture_of(space.sizes_of(architecture)).blocks == architecture.blocks
    supernet = Supernet(network, ordered, inputs(2))
    assert_close([supernet(Selection.of(ordered, architecture), *inputs(3))], outputs_of(expected, inputs(3)), 1e-4)
    for cost in (MACS, PARAMS):
        expected_cost = ExpectedCost(ordered, cost)(certain(ordered, architecture))
        assert float(expected_cost) == pytest.approx(space.cost(cost, architecture))


def test_a_branch_that_only_some_candidates_keep_is_mixed_with_what_it_reads():
    network = stack(2)
    space = inspect(network, inputs(2), removable="branches").ordered({"blocks": (3, 0, 1, 2)})
    supernet = Supernet(network, space, inputs(2))
    found = supernet(mixture(space, (1, 2), [0.3, 0.7]), *inputs(2))
    first, last = network.blocks[0], network.blocks[1]
    tokens, mask = network.stem(inputs(2)[0]), inputs(2)[1]
    tokens = tokens + 0.7 * first.branch(0, first.norm0(tokens), mask)
    tokens = tokens + last.branch(1, last.norm1(tokens), mask)
    assert_close([found.detach()], [network.head(tokens).detach()], 1e-4)


def test_whole_blocks_are_removable_alone_where_that_is_asked_for():
    network = stack()
    space = inspect(network, inputs(2))
    [stage] = space.stages
    assert stage.blocks == ("blocks.0", "blocks.1", "blocks.2")
    assert not stage.parts
    both = inspect(network, inputs(2), removable="branches", reading=space.reading)
    assert both.reading.in_blocks is space.reading
    half = Architecture(blocks={"blocks": ("blocks.0.attention0", "blocks.0.up1-down1", "blocks.2.up1-down1")})
    whole = Architecture(blocks={"blocks": ("blocks.0", "blocks.2")})
    for reading in (space.reading, both.reading):  # what is named decides, whatever was read
        assert_close(
            outputs_of(shrink(network, half, inputs(2), reading=reading), inputs(2)),
            outputs_of(without(network, [0, 1, 5]), inputs(2)),
        )
        assert_close(
            outputs_of(shrink(network, whole, inputs(2), reading=reading), inputs(2)),
            outputs_of(without(network, [0, 1, 4, 5]), inputs(2)),
        )


def test_a_block_without_branches_is_gone_and_its_neighbours_keep_their_class():
    network = stack()
    kept = Architecture(blocks={"blocks": ("blocks.0.attention0", "blocks.2.up1-down1")})
    student = shrink(network, kept, inputs(2))
    assert list(dict(student.blocks.named_children())) == ["0", "2"]
    assert isinstance(student, Stack)
    assert isinstance(student.blocks[0].up1, LeftOut)
    assert "adds nothing" in repr(student.blocks[0].down1)
    assert not any(name.startswith("blocks.0.up1") for name in student.state_dict())


@pytest.mark.parametrize("norm_first", [True, False])
@pytest.mark.parametrize("gone", [[0], [1], [0, 3], [1, 3]])
def test_torchs_encoder_keeps_its_class_without_some_branches_and_with_fewer_heads(norm_first, gone):
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(WIDTH, 2, 12, 0.0, batch_first=True, norm_first=norm_first)
    encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=not norm_first)
    network = nn.Sequential(nn.Linear(3, WIDTH), encoder, nn.Linear(WIDTH, 4)).eval()
    example = torch.randn(2, TOKENS, 3)
    space = inspect(network, example, removable="branches")
    [stage] = space.stages
    widths = {group.name: group.width // 2 for group in space.groups[1:]}
    for architecture in (
        Architecture(blocks={stage.name: tuple(each for at, each in enumerate(stage.blocks) if at not in gone)}),
        Architecture(widths=widths),
    ):
        student = shrink(network, architecture, example, reading=space.reading)
        assert isinstance(student, nn.Sequential)
        own = student[1].layers
        assert {type(each) for each in own} == {nn.TransformerEncoderLayer}
        assert all(isinstance(each.self_attn, nn.MultiheadAttention | LeftOut) for each in own)
        assert count_macs(student, example) == space.macs(architecture)
        inputs = torch.randn(3, TOKENS + 1, 3)
        with torch.no_grad():  # where torch takes its fused path
            fused = student.eval()(inputs)
        torch.testing.assert_close(fused, student(inputs), rtol=1e-4, atol=1e-5)


class Handing(Attention):
    """Makes a bias where it is given none, and hands it on, as the attention of T5 does."""

    def forward(self, tokens: Tensor, mask: Tensor, bias: Tensor | None = None) -> tuple[Tensor, Tensor, None]:
        bias = torch.zeros_like(mask) if bias is None else bias
        return super().forward(tokens, mask + bias)[0], bias, None


class HandingBlock(Block):
    """Gives the next block the bias that its attention hands on."""

    def __init__(self) -> None:
        super().__init__("ae", is_after=False)
        self.attention0 = Handing()

    def forward(self, tokens: Tensor, mask: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        if 0 in self.kept:
            found, bias, _ = self.attention0(self.norm0(tokens), mask=mask, bias=bias)
            tokens = found + tokens
        return (self.branch(1, self.norm1(tokens), mask) + tokens if 1 in self.kept else tokens), bias


class HandedOn(Stack):
    """Its blocks hand on a bias, which the forward makes before the first."""

    def __init__(self) -> None:
        super().__init__(3, "ae", is_after=False)
        self.blocks = nn.ModuleList(HandingBlock() for _ in range(3))

    def forward(self, inputs: Tensor, mask: Tensor) -> Tensor:
        tokens, bias = self.stem(inputs), inputs.mean((1, 2))[:, None, None, None] * mask
        for block in self.blocks:
            tokens, bias = block(tokens, mask, bias)
        return self.head(tokens)


def test_a_branch_that_is_left_out_hands_on_what_it_was_given_for_others():
    torch.manual_seed(0)
    network = HandedOn().eval()
    [stage] = inspect(network, inputs(2), removable="branches").stages
    kept = [1, 3, 4, 5]
    student = shrink(
        network, Architecture(blocks={stage.name: tuple(stage.blocks[place] for place in kept)}), inputs(2)
    )
    assert type(student) is HandedOn
    assert_close(outputs_of(student, inputs(7)), outputs_of(without(network, kept), inputs(7)))


class CastNorm(nn.Module):
    """A norm that casts what it reads, to a type that it has already."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.rand(WIDTH))

    def forward(self, tokens: Tensor) -> Tensor:
        variance = tokens.to(torch.float32).pow(2).mean(-1, keepdim=True)
        return self.weight * (tokens * torch.rsqrt(variance + 1e-6))


def test_a_cast_before_a_norm_goes_with_the_branch_of_the_norm():
    network = stack(2)
    for block in network.blocks:
        block.norm0, block.norm1 = CastNorm(), CastNorm()
    space = inspect(network, inputs(2), removable="branches")
    kept = Architecture(blocks={"blocks": ("blocks.0.attention0", "blocks.1.up1-down1")})
    student = shrink(network, kept, inputs(2), reading=space.reading)
    assert isinstance(student, Stack)
    assert_close(outputs_of(student, inputs(7)), outputs_of(without(network, [0, 3]), inputs(7)))


class Adding(Attention):
    """Adds what it finds by itself, as the attention of BLOOM does."""

    def forward(self, tokens: Tensor, mask: Tensor, added_to: Tensor) -> tuple[Tensor, None]:
        return super().forward(tokens, mask)[0] + added_to, None


class AddingBlock(Block):
    """Its attention adds; its expansion reads all tokens as one list, as that of OPT does."""

    def __init__(self) -> None:
        super().__init__("ae", is_after=False)
        self.attention0 = Adding()

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        if 0 in self.kept:
            tokens = self.attention0(self.norm0(tokens), mask, added_to=tokens)[0]
        if 1 not in self.kept:
            return tokens
        each = tokens.flatten(0, 1)
        return (each + self.branch(1, self.norm1(each), mask)).view(tokens.shape)


@pytest.mark.parametrize("kept", [[1, 2, 3], [0, 3], [0, 1, 2], [1]], ids=str)
def test_a_branch_of_a_module_that_adds_or_reads_another_shape_is_left_out(kept):
    network = stack(2)
    network.blocks = nn.ModuleList(AddingBlock() for _ in range(2)).eval()
    space = inspect(network, inputs(2), removable="branches")
    [stage] = space.stages
    assert stage.blocks == tuple(f"blocks.{place}.{name}" for place in (0, 1) for name in ("attention0", "up1-down1"))
    architecture = Architecture(blocks={stage.name: tuple(stage.blocks[place] for place in kept)})
    student = shrink(network, architecture, inputs(2), reading=space.reading)
    assert isinstance(student, Stack)
    assert_close(outputs_of(student, inputs(7)), outputs_of(without(network, kept), inputs(7)))
    assert count_macs(student, inputs(2)) == space.macs(architecture)
    assert sum(each.numel() for each in student.parameters()) == space.params(architecture)


def test_a_factor_of_the_block_itself_goes_with_its_branch():
    network = stack(2, "gg")
    space = inspect(network, inputs(2), removable="branches")
    architecture = Architecture(blocks={"blocks": (space.stages[0].blocks[1], space.stages[0].blocks[2])})
    student = shrink(network, architecture, inputs(2), reading=space.reading)
    assert isinstance(student, Stack)
    assert_close(outputs_of(student, inputs(7)), outputs_of(without(network, [1, 2]), inputs(7)))
    assert sum(each.numel() for each in student.parameters()) == space.params(architecture)
    assert set(student.state_dict()) < set(network.state_dict())


def test_a_number_of_branches_alone_does_not_say_which():
    space = inspect(stack(), inputs(2), removable="branches")
    with pytest.raises(SpaceError, match=r"3 of the 6 branches .* not which; .*'blocks\.0\.attention0'"):
        space.macs(Architecture(depths={"blocks": 3}))


def test_uniform_widths_keep_every_branch():
    network, examples = stack(2), inputs(2)
    space = inspect(network, examples, removable="branches")
    architecture = uniform_architecture(space, limits_of("macs=0.7", space))
    student = shrink(network, architecture, examples, reading=space.reading)
    assert space.stages[0].kept_in(architecture) == (0, 1, 2, 3)
    assert count_macs(student, examples) == space.macs(architecture)


def test_a_space_of_branches_is_read_back():
    space = inspect(stack(), inputs(2), removable="branches").ordered({"blocks": (5, 4, 3, 2, 1, 0)})
    again = SearchSpace.from_json(json.dumps(space.to_json()))
    assert again == space
    assert again.random_architecture(0).blocks == space.random_architecture(0).blocks
    supernet = Supernet(stack(), again, inputs(2))  # which reads the network itself
    assert_close(
        [supernet(Selection.of(again, again.full_architecture()), *inputs(2))], outputs_of(stack(), inputs(2)), 1e-4
    )


def test_a_report_says_which_branches_went(tmp_path):
    space = inspect(stack(), inputs(2), removable="branches")
    folder = RunFolder.create(tmp_path / "run", {})
    folder.write_json("space.json", space.to_json())
    kept = ("blocks.0.up1-down1", "blocks.1.attention0", "blocks.1.up1-down1", "blocks.2.attention0")
    folder.write_json("architecture.json", Architecture(blocks={"blocks": kept}).to_json())
    record = read_record(folder.path)
    [row] = record.stages
    assert row.left_out == ("blocks.0.attention0", "blocks.2.up1-down1")
    dropped = {each.name for each in record.groups if each.is_dropped}
    assert {name.rpartition(".")[0] for name in dropped} == {"blocks.0.attention0", "blocks.2"}
    page = report_page(folder.path)
    assert "without blocks.0.attention0, blocks.2.up1-down1" in page
    assert "4 of 6 branches" in page
    assert "4 of 6 blocks" not in page


class Parallel(Block):
    """Both branches read the same, so that there is one sum of three; Falcon and GPT-NeoX add the branches first."""

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        found = [self.branch(place, self.normed(place, tokens), mask) for place in (0, 1) if place in self.kept]
        return sum(reversed(found[:-1]), start=found[-1]) + tokens if found else tokens

    def normed(self, place: int, tokens: Tensor) -> Tensor:
        return getattr(self, f"norm{place}")(tokens)


class WithOneNorm(Parallel):
    """Both branches read what one norm gives, as those of Phi do; the second is added to the residual first."""

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        normed = self.norm0(tokens)
        for place in (1, 0):
            tokens = tokens + self.branch(place, normed, mask) if place in self.kept else tokens
        return tokens


class WithGates(Block):
    """One linear makes shifts and gates of both branches, as in diffusion transformers."""

    def __init__(self) -> None:
        super().__init__("ae", is_after=False)
        self.gates = nn.Linear(TOKENS, 4)

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        gates = self.gates(mask[:, 0, 0])[:, None].chunk(4, dim=-1)
        for place in sorted(self.kept):
            read = getattr(self, f"norm{place}")(tokens) + gates[2 * place]
            tokens = tokens + gates[2 * place + 1] * self.branch(place, read, mask)
        return tokens


class WithOneFactor(Block):
    """Both branches are multiplied with one number, as in ReZero."""

    def __init__(self) -> None:
        super().__init__("ae", is_after=False)
        self.factor = nn.Parameter(torch.rand(1))

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        for place in sorted(self.kept):
            tokens = tokens + self.factor * self.branch(place, getattr(self, f"norm{place}")(tokens), mask)
        return tokens


KINDS = {"side by side": Parallel, "one norm": WithOneNorm, "gates": WithGates, "one factor": WithOneFactor}


def parameters_with_gradients(network: nn.Module) -> int:
    """Parameters that an output depends on."""
    network(*inputs(2)).sum().backward()
    return sum(each.numel() for each in network.parameters() if each.grad is not None)


@pytest.mark.parametrize("kept", [[0, 3, 4, 5], [1, 2], [5]], ids=str)
@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_branches_that_share_what_they_read_go_one_by_one(kind, kept):
    network = stack()
    network.blocks = nn.ModuleList(kind("ae", False) if kind.__init__ is Block.__init__ else kind() for _ in range(3))
    if kind is WithOneNorm:
        for block in network.blocks:
            del block.norm1
    network.eval()
    space = inspect(network, inputs(2), removable="branches")
    [stage] = space.stages
    branches = [f"blocks.{block}.{name}" for block in range(3) for name in ("attention0", "up1-down1")]
    assert sorted(stage.blocks) == branches
    architecture = Architecture(
        blocks={stage.name: tuple(each for each in stage.blocks if branches.index(each) in kept)}
    )
    expected = outputs_of(without(network, kept), inputs(7))
    student = shrink(network, architecture, inputs(2), reading=space.reading)
    assert isinstance(student, Stack)
    assert_close(outputs_of(student, inputs(7)), expected)
    assert count_macs(student, inputs(2)) == space.macs(architecture)
    assert sum(each.numel() for each in student.parameters()) == space.params(architecture)
    assert space.params(architecture) == parameters_with_gradients(without(network, kept))

    places = [stage.blocks.index(branches[place]) for place in kept]
    ordered = space.ordered({stage.name: [*places, *(place for place in range(6) if place not in places)]})
    supernet = Supernet(network, ordered, inputs(2))
    assert_close([supernet(Selection.of(ordered, architecture), *inputs(7))], expected, 1e-4)
    for cost in (MACS, PARAMS):
        expected_cost = ExpectedCost(ordered, cost)(certain(ordered, architecture))
        assert float(expected_cost) == pytest.approx(space.cost(cost, architecture))


def test_a_branch_beside_another_is_mixed_by_its_share():
    network = stack(2)
    for block in network.blocks:
        block.__class__ = Parallel
    space = inspect(network, inputs(2), removable="branches").ordered({"blocks": (3, 0, 1, 2)})
    found = Supernet(network, space, inputs(2))(mixture(space, (1, 3), [0.3, 0.7]), *inputs(2))
    first, last = network.blocks
    tokens, mask = network.stem(inputs(2)[0]), inputs(2)[1]
    branches = [first.branch(place, first.normed(place, tokens), mask) for place in (0, 1)]
    tokens = tokens + 0.7 * branches[0] + 0.7 * branches[1]
    tokens = tokens + last.branch(1, last.normed(1, tokens), mask)
    assert_close([found.detach()], [network.head(tokens).detach()], 1e-4)


class LookingBack(Block):
    """The second branch reads what the block reads as well."""

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        between = tokens + self.branch(0, self.norm0(tokens), mask)
        return between + self.branch(1, self.norm1(between + tokens), mask)


def test_a_block_whose_sums_do_not_follow_each_other_stays_whole_and_is_listed():
    network = stack()
    for block in network.blocks:
        block.__class__ = LookingBack
    space = inspect(network, inputs(2), removable="branches")
    [stage] = space.stages
    assert stage.blocks == ("blocks.0", "blocks.1", "blocks.2")
    [reason] = [fixed.reason for fixed in space.fixed if fixed.name == "blocks"]
    assert reason.startswith("its block 'blocks.0' and 2 others can only stay or go whole")
    assert not any(fixed.name == "blocks" for fixed in inspect(network, inputs(2)).fixed)


def test_many_branches_have_evenly_spaced_candidates():
    assert branch_candidates(5) == (1, 2, 3, 4, 5)
    assert len(branch_candidates(100)) == 24
    assert branch_candidates(100)[-1] == 100
