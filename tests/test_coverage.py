"""A sample of the networks that `make coverage` runs: each is read, shrunk and checked."""

import copy

import pytest
import torch
from torch import nn

import transprune
from examination import CHECKS, LEARNING, distance, examine
from model_list import MODELS, ListedModel, matching
from other_networks import OTHERS
from small_networks import example, plain
from zeroing import kept_indices, zeroed

SAMPLE = (
    "torchvision/ResNet-resnext",
    "torchvision/squeezenet1_1",
    "torchvision/mnasnet0_5",
    "timm/convnext_atto",
    "timm/deit3_small_patch16_224",
)


@pytest.fixture(autouse=True)
def _one_thread(_few_threads):
    torch.set_num_threads(1)


def listed(name: str) -> ListedModel:
    return matching([name])[0]


@pytest.mark.parametrize("name", SAMPLE)
def test_a_listed_network_is_searchable_for_half_its_macs_and_passes_every_check(name):
    if name.startswith("timm/"):
        pytest.importorskip("timm")
    record = examine(listed(name))
    assert record["outcome"] == "works", {**record["details"], "error": record.get("error")}
    may_differ = "not comparable" in record["details"].get("zeroing", "")  # a norm over channels, or neighbours read
    assert record["checks"] == dict.fromkeys(CHECKS, True) | ({"zeroing": None} if may_differ else {})
    assert record["searched_share"] >= 0.5


def test_every_listed_network_has_a_name_of_its_own():
    names = [model.name for model in MODELS]
    assert len(set(names)) == len(names)


def test_a_listed_network_is_the_same_each_time():
    model = listed("torchvision/mnasnet0_5")
    first, again = model.build().state_dict(), model.build().state_dict()
    assert all(torch.equal(value, again[name]) for name, value in first.items())
    assert torch.equal(model.example(), model.example())


def shrunk(network: nn.Module) -> nn.Module:
    return transprune.shrink(network, transprune.Architecture(widths={"0": 2, "3": 3}), example())


def shifted(network: nn.Module) -> nn.Module:
    """A student whose second layer reads the channels of its first in another order."""
    student = shrunk(network)
    student[3].weight.data = student[3].weight.data.roll(1, dims=1)
    return student


@pytest.mark.parametrize(("shrink", "is_right"), [(shrunk, True), (shifted, False)])
def test_zeroing_tells_a_right_student_from_a_wrong_one(shrink, is_right):
    network = plain().eval()
    before = copy.deepcopy(network.state_dict())
    kept = kept_indices(network, shrink)
    assert sorted(kept["3.weight"][1].tolist()) == [0, 1]
    difference = distance(zeroed(network, kept), shrink(network), example())
    assert (difference < 1e-5) == is_right
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


OTHER_SAMPLE = (
    "detection/anchor_free_head",
    "recurrent/lstm_time_first",
    "generative/style_modulation",
    "generative/fourier_operator",
    "generative/written_side_by_side",
    "generative/written_in_blocks",
    "structures/object",
)


@pytest.mark.parametrize("name", OTHER_SAMPLE)
def test_another_network_passes_every_check_and_takes_a_step_of_search_and_distillation(name):
    record = examine(next(each for each in OTHERS if each.name == name))
    assert record["outcome"] == "works", {**record["details"], "error": record.get("error")}
    assert record["checks"] == dict.fromkeys({*CHECKS, *LEARNING} - {"zeroing"}, True)


def test_at_least_150_networks_are_no_classifiers():
    assert len({each.name for each in OTHERS}) == len(OTHERS) >= 150
