"""Random changes of training images: what they may do, and that only the generator decides."""

import colorsys

import pytest
import torch

from transprune.data import Augmentation, load_data
from transprune.data.augmentation import (
    COLOUR_AXES,
    augment,
    named_augmentation,
    random_colours,
    random_lighting,
)
from transprune.errors import OptionError

IMAGES = torch.randint(0, 256, (6, 3, 12, 10), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
IMAGENET = named_augmentation("imagenet", (3, 224, 224), standard=Augmentation())


def seeded(seed):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("name", ["none", "shift", "imagenet"])
def test_the_generator_alone_decides(name):
    augmentation = named_augmentation(name, (3, 12, 10), standard=Augmentation())
    first = augment(IMAGES, augmentation, seeded(1))
    torch.rand(7)
    assert torch.equal(augment(IMAGES, augmentation, seeded(1)), first)
    assert torch.equal(augment(IMAGES, augmentation, seeded(2)), first) == (name == "none")
    assert first.dtype == torch.uint8
    assert first.shape == IMAGES.shape


def test_none_changes_nothing():
    assert torch.equal(augment(IMAGES, named_augmentation("none", (3, 12, 10), standard=IMAGENET), seeded(0)), IMAGES)


def test_shift_moves_by_an_eighth_and_never_mirrors():
    assert named_augmentation("shift", (1, 32, 32), standard=IMAGENET) == Augmentation(pad=4)
    assert named_augmentation("shift", (1, 6, 6), standard=IMAGENET) == Augmentation(pad=1)


def test_standard_is_what_the_data_set_says():
    assert named_augmentation("standard", (1, 8, 8), standard=IMAGENET) is IMAGENET
    assert load_data("digits", augmentation="standard").augmentation == load_data("digits").augmentation
    assert load_data("digits", augmentation="none").augmentation == Augmentation()


def test_imagenet_is_the_papers_and_leaves_colours_out_where_there_are_none():
    assert Augmentation(flip=True, resized_crop=True, colour_jitter=(0.4, 0.4, 0.4, 0.2), lighting=0.1) == IMAGENET
    grey = named_augmentation("imagenet", (1, 28, 28), standard=Augmentation())
    assert grey == Augmentation(flip=True, resized_crop=True)


def test_brightness_multiplies_all_pixels_of_an_image_by_one_factor_in_its_range():
    dim = IMAGES // 2  # so that nothing is cut off at white
    ratios = random_colours(dim, (0.4, 0, 0, 0), seeded(3)).double() / dim.clamp_min(1)
    for ratio, image in zip(ratios, dim, strict=True):
        bright = ratio[image > 40]
        assert bright.max() - bright.min() < 0.06  # whole grey levels
        assert 0.57 <= bright.mean() <= 1.43
    assert ratios.mean((1, 2, 3)).std() > 0.05


def test_hue_turns_the_colour_circle_and_keeps_value():
    red = torch.tensor([200, 40, 40], dtype=torch.uint8).view(1, 3, 1, 1).repeat(50, 1, 2, 2)
    changed = random_colours(red, (0, 0, 0, 0.2), seeded(0))[:, :, 0, 0].double() / 255
    turns = [colorsys.rgb_to_hsv(*colour) for colour in changed.tolist()]
    hues = [(hue + 0.5) % 1 - 0.5 for hue, _, _ in turns]
    assert max(map(abs, hues)) <= 0.21
    assert max(hues) > 0.1
    assert min(hues) < -0.1
    assert all(abs(value - 200 / 255) < 0.02 for _, _, value in turns)


def test_saturation_zero_to_two_keeps_grey_images_as_they_are():
    grey = IMAGES[:, :1].repeat(1, 3, 1, 1)
    assert (random_colours(grey, (0, 0, 1.0, 0.5), seeded(0)).int() - grey.int()).abs().max() <= 1


def test_lighting_shifts_all_pixels_of_an_image_alike_along_the_colour_axes():
    plain = torch.full((400, 3, 2, 2), 128, dtype=torch.uint8)
    shifts = random_lighting(plain, 0.1, seeded(0)).double() - 128
    assert (shifts == shifts[:, :, :1, :1]).all()
    spread = shifts[:, :, 0, 0].T.cov()
    axes = torch.tensor([vector for _, vector in COLOUR_AXES], dtype=torch.float64)
    values = torch.tensor([0.1 * 255 * value for value, _ in COLOUR_AXES], dtype=torch.float64)
    expected = axes.T @ torch.diag(values**2) @ axes
    assert (spread - expected).abs().max() < 0.2 * expected.max()


@pytest.mark.parametrize(
    "wrong", [{"colour_jitter": (0.1, 0.1, 0.1, 0.6)}, {"colour_jitter": (-0.1, 0, 0, 0)}, {"lighting": -1.0}]
)
def test_strengths_out_of_range_are_refused(wrong):
    with pytest.raises(OptionError, match=r"cannot augment with colour_jitter=.*expected three numbers from 0 to 1"):
        Augmentation(**wrong)
