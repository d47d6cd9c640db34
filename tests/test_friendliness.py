"""Which layers have widths that do not suit the hardware, and what share of the work they do."""

import pytest

from any_networks import any_space
from small_networks import resnet_space
from transprune.architecture import Architecture
from transprune.costs import Channels, Layer
from transprune.reading.macs import friendliness
from transprune.space import SearchSpace, WidthGroup


def two_layers():
    """An image of 3 channels, a convolution that is chosen, and a classifier of 10 classes."""
    group = WidthGroup(name="conv", width=16, candidates=(8, 12, 16), layers=("conv",))
    hidden = Channels(16, "conv")
    return SearchSpace(
        groups=(group,),
        stages=(),
        layers=(
            Layer(name="conv", operator="conv", inputs=Channels(3), outputs=hidden, kernel=9, positions=4),
            Layer(name="norm", operator="norm", inputs=hidden, outputs=hidden, has_bias=True),
            Layer(name="classifier", operator="linear", inputs=hidden, outputs=Channels(10)),
            Layer(name="unrelated", operator="linear", inputs=Channels(5), outputs=Channels(7)),
        ),
    )


def test_layers_that_read_or_write_a_chosen_width_that_is_no_multiple_are_counted_by_their_macs():
    found = friendliness(two_layers(), Architecture(widths={"conv": 12}))
    assert found.unfriendly == ("conv", "classifier")
    assert found.layers == 3
    assert found.share_of_macs == (9 * 3 * 12 * 4 + 12 * 10) / (9 * 3 * 12 * 4 + 12 * 10 + 35)


def test_widths_that_nobody_chooses_do_not_count():
    found = friendliness(two_layers(), Architecture(widths={"conv": 8}))
    assert found.unfriendly == ()
    assert found.share_of_macs == 0


def test_another_multiple_may_be_asked_for():
    assert friendliness(two_layers(), Architecture(widths={"conv": 12}), multiple=4).share_of_macs == 0
    assert friendliness(two_layers(), Architecture(widths={"conv": 8}), multiple=16).share_of_macs > 0


def test_dropped_blocks_do_not_count_and_concatenations_count_as_they_are_read():
    space = resnet_space(20)
    shallow = Architecture(widths={}, depths={stage.name: 1 for stage in space.stages})
    assert friendliness(space, shallow).layers < friendliness(space, Architecture()).layers
    dense = any_space("dense")
    assert friendliness(dense, dense.full_architecture(), multiple=1).share_of_macs == 0


@pytest.mark.parametrize("seed", range(3))
def test_the_share_is_a_share_and_names_are_of_layers(seed):
    space = resnet_space(20)
    found = friendliness(space, space.random_architecture(seed))
    assert 0 < found.share_of_macs <= 1
    assert set(found.unfriendly) <= {layer.name for layer in space.layers}
