"""Budgets of the keys and values that a network keeps for its next call: predicted as they are kept, to the byte."""

import pytest
import torch
import transformers

import transprune
from transprune.budget import parse_budgets
from transprune.costs import CACHE, MACS
from transprune.errors import BudgetError
from transprune.reading.inspection import inspect
from transprune.reading.reading import read
from transprune.runtime.structures import is_cache, leaves_in
from transprune.shrinking.shrink import shrink

TOKENS, SAMPLES = 16, 16
SIZES = {"vocab_size": 60, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4}
LLAMA = {**SIZES, "intermediate_size": 48, "num_key_value_heads": 2, "max_position_embeddings": 64}


def llama(**chosen):
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**LLAMA, **chosen))


def windowed():
    """Layers that keep the last seven tokens, and others that keep all."""
    config = transformers.Gemma2Config(**LLAMA, head_dim=8, sliding_window=8)
    return transformers.Gemma2ForCausalLM(config)


def of_one_key():
    """All heads share one key, which is cut out of one product with the queries."""
    return transformers.FalconForCausalLM(transformers.FalconConfig(**SIZES, bos_token_id=0, eos_token_id=1))


def fused():
    config = transformers.GPT2Config(
        vocab_size=60, n_embd=32, n_layer=3, n_head=4, n_positions=64, bos_token_id=0, eos_token_id=1
    )
    return transformers.GPT2LMHeadModel(config)


def translating():
    """Decoder layers keep keys and values of their own tokens and of the encoder's."""
    config = transformers.T5Config(
        vocab_size=60, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4, decoder_start_token_id=0
    )
    return transformers.T5ForConditionalGeneration(config)


MADE = {each.__name__: each for each in (llama, windowed, of_one_key, fused, translating)}


def example_of(name):
    tokens = torch.randint(2, 60, (SAMPLES, TOKENS), generator=torch.Generator().manual_seed(0))
    return {"input_ids": tokens, **({"decoder_input_ids": tokens[:, :9]} if name == "translating" else {})}


@torch.no_grad()
def kept(network, example):
    """Bytes a sample in the caches that a network returns; attention that is left out has one number for a token."""
    returned = network.eval()(**example)
    caches = [each for each in returned.values() if is_cache(each)]
    assert caches
    tensors = [each for each in leaves_in(caches) if each.is_floating_point() and each.shape[-1] > 1]
    return sum(each.numel() * each.element_size() for each in tensors) // SAMPLES


@pytest.mark.parametrize("name", MADE)
def test_what_is_predicted_is_kept(name):
    torch.manual_seed(0)
    model, example = MADE[name]().eval(), example_of(name)
    space = inspect(model, example, removable="branches")
    assert space.cost(CACHE, space.full_architecture()) == kept(model, example) > 0
    chosen = [space.random_architecture(seed) for seed in range(3)]
    for architecture in (*chosen, space.smallest_architecture()):
        student = shrink(model, architecture, example, reading=space.reading)
        assert space.cost(CACHE, architecture) == kept(student, example), architecture.to_json()


def test_half_of_the_type_takes_half_of_the_bytes():
    torch.manual_seed(0)
    model, example = llama(), example_of("llama")
    spaces = inspect(model, example), inspect(model.to(torch.bfloat16), example)
    assert len({space.macs(space.full_architecture()) for space in spaces}) == 1
    sizes = [space.cost(CACHE, space.full_architecture()) for space in spaces]
    # keys and values of 2 heads of 8 in 3 layers
    assert sizes == [2 * 2 * 8 * 3 * TOKENS * each for each in (4, 2)]


def test_a_budget_of_cache_is_kept():
    torch.manual_seed(0)
    model, example = llama().eval(), example_of("llama")
    found = transprune.compress(model, [example], "cache=0.5", samples=SAMPLES, task=transprune.causal_lm())
    full = inspect(model, example)
    assert kept(found.student, example) <= full.cost(CACHE, full.full_architecture()) // 2
    assert found.limits[0].is_kept(found.space, found.architecture)
    assert str(found.limits[0]) == "3.1 kB"


@pytest.mark.parametrize(
    "model", [llama(use_cache=False), torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Linear(8, 4))]
)
def test_a_network_without_a_cache_has_no_such_budget(model):
    example = example_of("llama") if isinstance(model, transformers.LlamaForCausalLM) else torch.zeros(2, 4)
    space = inspect(model, example)
    (budget,) = parse_budgets("cache=0.5")
    with pytest.raises(BudgetError, match="does not return keys and values"):
        budget.limit(space)


def test_reading_leaves_the_network_as_it_was():
    torch.manual_seed(0)
    model, example = llama().train(), example_of("llama")
    before = {name: each.clone() for name, each in model.state_dict().items()}
    state = torch.get_rng_state()
    reading = read(model, example)
    assert model.training
    assert model.config.use_cache
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(before[name], each) for name, each in model.state_dict().items())
    caches = [facts for facts in reading.layers if facts.use.operator == "cache"]
    assert [facts.macs for facts in caches] == [0] * 6


def test_a_cache_costs_no_arithmetic():
    space = inspect(llama(), example_of("llama"))
    bare = inspect(llama(use_cache=False), example_of("llama"))
    for seed in range(3):
        architecture = space.random_architecture(seed)
        assert space.cost(MACS, architecture) == bare.cost(MACS, architecture)
        assert space.params(architecture) == bare.params(architecture)
