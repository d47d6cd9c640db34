"""What a recipe may ask for beside SGD: other optimizers, averages, clipped gradients, spread and blended labels."""

import math
from dataclasses import replace

import pytest
import torch
from torch import nn

import transprune
from test_resume import StopsAfter
from test_searching import OPTIONS, Residual
from test_training import SHORT, assert_same_state, small_network, two_colours
from transprune.errors import OptionError, StoppedError
from transprune.options import DistillationOptions, TrainingOptions, get_preset
from transprune.training.batches import Batch
from transprune.training.loop import Setup
from transprune.training.tasks import classification
from transprune.training.train import Fit, hardened, softening
from transprune.training.update import optimizer_of, settled

PLAIN = TrainingOptions(**SHORT)
RICH = {"optimizer": "adamw", "gradient_clip": 0.5, "average": 0.9, "label_smoothing": 0.1, "mixup": 0.2, "cutmix": 1.0}


def fit(options, **setup):
    placed = Setup(progress=False, **setup).named("teacher", small_network())
    return Fit(small_network(), None, two_colours(), options, classification(), setup=placed)


def test_the_optimizer_is_the_one_that_is_named_or_made():
    weights = [nn.Parameter(torch.zeros(2))]
    found = optimizer_of(weights, replace(PLAIN, optimizer="adamw", momentum=0.8))
    assert type(found) is torch.optim.AdamW
    assert found.param_groups[0]["betas"] == (0.8, 0.999)
    assert found.param_groups[0]["weight_decay"] == PLAIN.weight_decay
    named = optimizer_of(weights, replace(PLAIN, optimizer="torch.optim:RMSprop"))
    assert (type(named), named.defaults["lr"]) == (torch.optim.RMSprop, PLAIN.learning_rate)
    made = optimizer_of(weights, PLAIN, lambda parameters, rate: torch.optim.Adagrad(parameters, lr=rate))
    assert (type(made), made.defaults["lr"]) == (torch.optim.Adagrad, PLAIN.learning_rate)
    assert type(optimizer_of(weights, PLAIN)) is torch.optim.SGD


class Normed(nn.Module):
    """A network with norms of these kinds."""

    def __init__(self, *norms):
        super().__init__()
        self.norms = nn.ModuleList(norms)


RMSNormOfALibrary = type("LlamaRMSNorm", (nn.Module,), {})


@pytest.mark.parametrize(
    ("network", "optimizer"),
    [
        (small_network(), "sgd"),
        (Normed(), "sgd"),
        (Normed(nn.GroupNorm(1, 4)), "sgd"),
        (Normed(nn.BatchNorm2d(4), nn.BatchNorm2d(4), nn.LayerNorm(4)), "sgd"),
        (Normed(nn.LayerNorm(4)), "adamw"),
        (Normed(RMSNormOfALibrary()), "adamw"),
        (nn.TransformerEncoderLayer(8, 2), "adamw"),
        (Normed(nn.BatchNorm2d(4), nn.LayerNorm(4), nn.LayerNorm(4)), "adamw"),
    ],
)
def test_presets_let_transformers_learn_by_adamw_and_all_others_by_sgd(network, optimizer):
    preset = get_preset("medium")
    rates = {"sgd": (0.1, 0.02, 0.01), "adamw": (1e-3, 5e-4, 5e-4)}[optimizer]
    for options, rate in zip((preset.teacher, preset.search, preset.distill), rates, strict=True):
        chosen = settled(options, network)
        hints = {"hints": chosen.hints} if isinstance(options, DistillationOptions) else {}
        assert chosen == replace(options, optimizer=optimizer, learning_rate=rate, **hints)
        assert settled(replace(options, optimizer="sgd", learning_rate=0.3), network).learning_rate == 0.3
        assert settled(replace(options, optimizer="sgd"), network).optimizer == "sgd"
        assert (
            settled(replace(options, optimizer="torch.optim:RMSprop"), small_network()).learning_rate
            == (options.usual_rates["sgd"])
        )


@pytest.mark.parametrize("name", ["paper-cifar", "paper-imagenet"])
def test_the_papers_presets_never_choose(name):
    preset = get_preset(name)
    for options in (preset.teacher, preset.search, preset.distill):
        assert settled(options, nn.LayerNorm(4)) == options


def test_loops_learn_by_what_suits_the_network():
    preset, setup = get_preset("quick"), Setup(progress=False)
    attentive = nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.LayerNorm(8), nn.Linear(8, 2))
    found = Fit(attentive, None, two_colours(), preset.teacher, classification(), setup=setup.named("t", attentive))
    assert type(found.optimizer) is torch.optim.AdamW
    assert type(fit(preset.teacher).optimizer) is torch.optim.SGD


def test_a_search_learns_its_weights_with_the_optimizer_of_its_options():
    seen = []
    setup = Setup(on_step=lambda loop: seen.append(loop.weight_optimizer), progress=False)
    transprune.search(Residual(), two_colours(), "macs=0.5", replace(OPTIONS, epochs=1, optimizer="adamw"), setup=setup)
    assert {type(each) for each in seen} == {torch.optim.AdamW}


def test_a_gradient_is_shortened_to_its_norm():
    norms = []
    for clip in (None, 1e-3):
        loop = fit(replace(PLAIN, gradient_clip=clip))
        loop.step(next(iter(loop.batches)))
        norms.append(math.sqrt(sum(float(each.grad.square().sum()) for each in loop.network.parameters())))
    assert norms[0] > 1e-2
    assert norms[1] == pytest.approx(1e-3, rel=1e-3)


def test_what_is_kept_is_the_moving_average_of_the_weights():
    loop = fit(replace(PLAIN, average=0.75, epochs=2))
    expected = None
    for batch in [*loop.batches, *loop.batches]:
        loop.step(batch)
        now = [each.detach().clone() for each in loop.network.parameters()]
        expected = now if expected is None else [0.75 * a + 0.25 * b for a, b in zip(expected, now, strict=True)]
    for kept, wanted in zip(loop.finished().parameters(), expected, strict=True):
        torch.testing.assert_close(kept, wanted)


def test_labels_are_spread_and_images_blended():
    batch = Batch((torch.randn(4, 1, 4, 4),), torch.tensor([0, 1, 1, 0]))
    network = small_network()
    assert softening(network, PLAIN, batch.inputs) is None
    spread = softening(network, replace(PLAIN, label_smoothing=0.2), batch.inputs)(batch)
    torch.testing.assert_close(spread.targets, torch.tensor([[0.9, 0.1], [0.1, 0.9], [0.1, 0.9], [0.9, 0.1]]))
    assert torch.equal(spread.inputs[0], batch.inputs[0])
    assert torch.equal(hardened(spread).targets, batch.targets)
    smoothed = nn.functional.cross_entropy(network(*batch.inputs), batch.targets, label_smoothing=0.2)
    torch.testing.assert_close(nn.functional.cross_entropy(network(*batch.inputs), spread.targets), smoothed)
    torch.manual_seed(0)
    blended = softening(network, replace(PLAIN, mixup=1.0), batch.inputs)(batch)
    share = blended.targets[1, 1]  # of a sample whose neighbour has another label
    assert 0 < share < 1
    images = share * batch.inputs[0] + (1 - share) * batch.inputs[0].roll(1, 0)
    torch.testing.assert_close(blended.inputs[0], images)


def test_a_rich_recipe_learns_and_resumes_bit_for_bit(tmp_path):
    options = replace(PLAIN, **RICH)
    whole = transprune.train(small_network(), two_colours(), options)
    assert transprune.evaluate(whole, two_colours()).top1 > 60
    with pytest.raises(StoppedError):
        transprune.train(small_network(), two_colours(), options, setup=Setup(checkpoints=StopsAfter(tmp_path, 6)))
    resumed = transprune.train(
        small_network(), two_colours(), options, setup=Setup(checkpoints=transprune.Checkpoints(tmp_path))
    )
    assert_same_state(whole.state_dict(), resumed.state_dict())


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"optimizer": "adam"}, "sgd, adamw"),
        ({"gradient_clip": 0.0}, "more than 0"),
        ({"average": 1.0}, "average=1.0: .*below 1"),
        ({"momentum": 1.5}, "momentum=1.5: .*below 1"),
        ({"weight_decay": -1.0}, "weight_decay=-1.0: expected at least 0"),
    ],
)
def test_options_out_of_range_are_refused(wrong, said):
    with pytest.raises(OptionError, match=said):
        replace(PLAIN, **wrong)
