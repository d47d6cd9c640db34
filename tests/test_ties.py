"""Widths that are chosen together: by patterns of layers, and by the numbers of a network's configuration."""

import itertools
import json
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

import transprune
from transprune.budget import parse_budgets
from transprune.costs import COSTS, MACS
from transprune.errors import ModelError, OptionError, SpaceError
from transprune.models.configured import configured, numbers_of
from transprune.reading.inspection import inspect
from transprune.shrinking.shrink import shrink
from transprune.space import SearchSpace, tied_candidates, width_candidates
from transprune.tas.derivation import derive_with_proof
from transprune.tas.expected_cost import ExpectedCost
from transprune.tas.local_search import step_within
from transprune.tas.probabilities import Probabilities
from transprune.tas.sampling import ArchitectureParameters

transformers = pytest.importorskip("transformers")


def plain() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 16, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(32, 20),
        nn.ReLU(),
        nn.Linear(20, 10),
    )


def tied(*patterns: str) -> SearchSpace:
    return inspect(plain(), torch.zeros(2, 3, 8, 8), tie=patterns)


def every(space: SearchSpace) -> list[transprune.Architecture]:
    """All architectures of a space whose tied groups have the same candidate."""
    own = [place for place, leader in enumerate(space.leaders) if leader == place]
    found = []
    for at in itertools.product(*(range(len(space.groups[place].candidates)) for place in own)):
        chosen = dict(zip(own, at, strict=True))
        found.append(
            space.architecture_of(
                [group.candidates[chosen[leader]] for group, leader in zip(space.groups, space.leaders, strict=True)]
            )
        )
    return found


def test_tied_layers_are_one_choice() -> None:
    space = tied("[02]", "4")
    assert space.leaders == (0, 0, 2, 3)
    assert space.count() == len(every(space)) == 8 * 8 * 8
    for seed in range(8):
        widths = space.random_architecture(seed).widths
        assert widths["0"] == widths["2"]
    assert SearchSpace.from_json(json.dumps(space.to_json())).leaders == space.leaders


def test_widths_of_different_layers_are_tied_as_shares() -> None:
    space = tied("[024]")
    first, _, third, _ = space.groups
    assert [width / 16 for width in first.candidates] == pytest.approx(
        [width / 32 for width in third.candidates], abs=0.06
    )
    assert len(first.candidates) == len(third.candidates)


def test_candidates_that_are_tied_to_nothing_are_those_of_a_layer_alone() -> None:
    """By the definition: the shares rounded down, then to multiples, duplicates merged."""
    for width, divisor in itertools.product(range(1, 70), (1, 4, 8)):
        cut = {int(width * share / 10) for share in range(3, 11)} if divisor == 1 else set()
        if divisor > 1:
            cut = {max(divisor, round(int(width * share / 10) / divisor) * divisor) for share in range(3, 11)}
        expected = tuple(sorted({max(1, each) for each in cut if each < width} | {width}))
        ratios = [share / 10 for share in range(3, 11)]
        assert width_candidates(width, ratios, divisor=divisor) == expected


def test_tied_candidates_differ_in_every_layer() -> None:
    for first, second in tied_candidates([(64, 1), (3, 1)]), tied_candidates([(64, 8), (20, 4)]):
        assert len(first) == len(second)
        assert list(first) == sorted(set(first))
        assert list(second) == sorted(set(second))


def test_expected_cost_is_the_mean_over_all_tied_architectures() -> None:
    space = tied("[02]", "[48]")
    parameters = ArchitectureParameters(space)
    torch.manual_seed(1)
    with torch.no_grad():
        parameters.widths.normal_()
    with torch.no_grad():
        probabilities = parameters.probabilities()
    assert torch.equal(probabilities.widths[0], probabilities.widths[1])
    mean = 0.0
    for architecture in every(space):
        share = 1.0
        for place in sorted(set(space.leaders)):
            group = space.groups[place]
            share *= float(probabilities.widths[place, group.candidates.index(architecture.widths[group.name])])
        mean += share * space.macs(architecture)
    assert float(ExpectedCost(space, MACS)(probabilities).detach()) == pytest.approx(mean, rel=1e-6)


def test_tied_groups_are_drawn_once() -> None:
    parameters = ArchitectureParameters(tied("[02]"))
    for _ in range(20):
        widths = parameters.sample(1.0).widths
        assert widths["0"].sizes == widths["2"].sizes
        assert torch.equal(widths["0"].weights, widths["2"].weights)


@pytest.mark.parametrize("share", [0.8, 0.5, 0.3])
def test_the_derived_architecture_is_the_best_of_all_tied_ones(share: float) -> None:
    space = tied("[02]", "[48]")
    torch.manual_seed(2)
    parameters = ArchitectureParameters(space)
    with torch.no_grad():
        parameters.widths.normal_()
    probabilities = parameters.probabilities()
    limits = [each.limit(space, COSTS) for each in parse_budgets(f"macs={share}")]

    def figure(architecture: transprune.Architecture, given: Probabilities = probabilities) -> float:
        rows = given.widths.detach().log()
        return sum(
            float(rows[place, space.groups[place].candidates.index(architecture.widths[space.groups[place].name])])
            for place in set(space.leaders)
        )

    within = [each for each in every(space) if space.macs(each) <= limits[0].most]
    best = max(within, key=figure)
    found = derive_with_proof(space, probabilities, limits, fill=0.0)
    assert found.is_proved
    assert found.architecture == best
    stepped = step_within(space, probabilities, limits)
    assert stepped in within


def test_a_search_keeps_layers_tied() -> None:
    torch.manual_seed(0)
    images, labels = torch.randn(64, 3, 8, 8), torch.randint(0, 10, (64,))
    pairs = torch.utils.data.TensorDataset(images, labels)
    loader = torch.utils.data.DataLoader(pairs, batch_size=16)
    data = transprune.LoaderData(train=loader, test=loader, example=images[:2])
    found = transprune.search(
        plain(), data, "macs=0.5", transprune.SearchOptions(epochs=1, batch_size=16), space=tied("[02]")
    )
    assert found.architecture.widths["0"] == found.architecture.widths["2"]


def test_scores_of_tied_layers_add_up() -> None:
    network, samples = plain(), torch.randn(32, 3, 8, 8)
    space = tied("[02]")
    found = transprune.compress(network, samples, "macs=0.4", space=space, samples=32)
    assert found.architecture.widths["0"] == found.architecture.widths["2"]
    scores = found.scores[-1]
    rows = scores.probabilities(space, spread=1.0).widths.log()
    assert torch.equal(rows[0], rows[1])
    alone = scores.probabilities(inspect(network, samples[:2]), spread=1.0).widths.log()
    together = (alone[0] + alone[1]) - (alone[0] + alone[1]).max()
    mine = rows[0] - rows[0].max()
    assert torch.allclose(mine * together.min() / mine.min(), together, atol=1e-5)


def test_a_layer_cannot_be_tied_twice() -> None:
    with pytest.raises(OptionError, match=r"tie the width of '2' by '\[02\]' and by '\[24\]'"):
        tied("[02]", "[24]")
    with pytest.raises(OptionError, match="tie 'nothing': no layer"):
        tied("nothing")


def test_a_saved_space_whose_tied_groups_do_not_fit_is_refused() -> None:
    content = tied("[02]").to_json()
    content["groups"][1]["candidates"] = [8, 16]
    with pytest.raises(SpaceError, match="'2' is tied to '0' with 2 candidates, expected 8"):
        SearchSpace.from_json(content)


SMALL: dict[str, Any] = {
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 40,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
}
TOKENS = torch.randint(3, 61, (2, 12), generator=torch.Generator().manual_seed(0))


def llama() -> nn.Module:
    torch.manual_seed(0)
    config = transformers.LlamaConfig(**SMALL, num_key_value_heads=2, max_position_embeddings=64)
    return transformers.LlamaForCausalLM(config).eval()


def qwen() -> nn.Module:
    """Its configuration has a list with an entry for each block."""
    torch.manual_seed(0)
    config = transformers.Qwen3Config(**SMALL, num_key_value_heads=2, head_dim=8, max_position_embeddings=64)
    return transformers.Qwen3ForCausalLM(config).eval()


def gpt2() -> nn.Module:
    """Its configuration leaves the width of its expansions open."""
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        vocab_size=61, n_embd=32, n_layer=3, n_head=4, n_positions=64, bos_token_id=1, eos_token_id=2
    )
    return transformers.GPT2LMHeadModel(config).eval()


GROUPED = "num_attention_heads/2, num_key_value_heads"


@pytest.mark.parametrize(
    ("build", "ties", "depth"),
    [
        (qwen, {"hidden_size", "intermediate_size", GROUPED}, "num_hidden_layers"),
        (gpt2, {"n_inner"}, "n_layer"),
    ],
)
def test_a_configured_student_is_a_stock_network(build: Any, ties: set[str], depth: str, tmp_path: Any) -> None:
    """What `save_pretrained` writes is read by the class itself, and computes what the student does."""
    model = build()
    space = inspect(model, (TOKENS,), tie="config")
    assert {group.tie for group in space.groups} == ties
    assert [stage.tie for stage in space.stages] == [depth]
    stage = space.stages[0]
    architecture = replace(
        space.random_architecture(1), depths={stage.name: 2}, blocks={stage.name: (stage.blocks[0], stage.blocks[2])}
    )
    student = shrink(model, architecture, (TOKENS,), reading=space.reading).eval()
    stock = configured(student, model, space, architecture)
    assert type(stock) is type(model)
    assert sum(each.numel() for each in stock.parameters()) == space.params(architecture)
    stock.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path).eval()
    assert len(again.get_submodule(space.stages[0].name)) == 2
    with torch.no_grad():
        torch.testing.assert_close(again(TOKENS).logits, student(TOKENS).logits, rtol=0, atol=1e-5)


@pytest.fixture(scope="module")
def read_llama() -> tuple[nn.Module, SearchSpace]:
    model = llama()
    return model, inspect(model, (TOKENS,), tie="config")


def test_a_stock_language_model_generates_with_a_cache_as_without(read_llama: tuple[nn.Module, SearchSpace]) -> None:
    model, space = read_llama
    assert model.config.use_cache
    architecture = space.random_architecture(2)
    student = shrink(model, architecture, (TOKENS,), reading=space.reading)
    assert isinstance(student, type(model))
    stock = configured(student, model, space, architecture)
    given = {"attention_mask": torch.ones_like(TOKENS), "max_new_tokens": 8, "do_sample": False, "pad_token_id": 0}
    texts = [stock.generate(TOKENS, use_cache=is_used, **given) for is_used in (True, False)]
    assert torch.equal(*texts)
    assert torch.equal(student.generate(TOKENS, **given), texts[0])


def test_widths_keep_to_what_the_class_takes(read_llama: tuple[nn.Module, SearchSpace]) -> None:
    """The hidden size of a Llama must be a multiple of its number of heads."""
    (candidates,) = {group.candidates for group in read_llama[1].groups if group.tie == "hidden_size"}
    assert candidates == (8, 12, 16, 20, 24, 28, 32)


def test_numbers_are_found_by_what_they_change() -> None:
    found = {each.path: each for each in numbers_of(llama())}
    assert found["num_hidden_layers"].containers == {"model.layers"}
    assert ("model.layers.0.mlp.down_proj.weight", 1) in found["intermediate_size"].axes
    assert "max_position_embeddings" not in found


def test_what_no_configuration_says_is_refused(read_llama: tuple[nn.Module, SearchSpace]) -> None:
    with pytest.raises(ModelError, match="by its configuration: it has none"):
        inspect(plain(), torch.zeros(2, 3, 8, 8), tie="config")
    model, space = read_llama
    with pytest.raises(OptionError, match="no configuration says which branches"):
        inspect(model, (TOKENS,), tie="config", removable="branches")
    untied = inspect(model, (TOKENS,), reading=space.reading)
    with pytest.raises(ModelError, match="none is its size alone"):
        configured(model, model, untied, untied.full_architecture())
    smallest = space.smallest_architecture()
    with pytest.raises(ModelError, match=r"'lm_head.weight' is \[61, 32\] in the student and \[61, 8\]"):
        configured(model, model, space, smallest)
