"""Batches: their sizes and order, what augmentation does to them, and that nothing but the seed decides."""

import dataclasses

import numpy as np
import pytest
import torch
from PIL import Image

from transprune.data import Augmentation, FileSplit, ImageData, MemorySplit, make_loader
from transprune.data.augmentation import random_boxes, random_crop, random_flip, random_resized_crop
from transprune.data.image_batches import EpochPlan, batch_sizes
from transprune.data.imagefolder import FolderFiles
from transprune.errors import DataError, OptionError


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def noise(*shape, seed=0):
    """Images in which no two shifts look alike and no pixel is zero."""
    return torch.randint(1, 256, shape, dtype=torch.uint8, generator=seeded(seed))


def memory_data(samples=50, size=(3, 6, 5), **changes):
    split = MemorySplit(noise(samples, *size), torch.arange(samples))
    values = {
        "name": "noise",
        "train": split,
        "test": split,
        "classes": tuple(map(str, range(samples))),  # each image its own class: the label says which image it is
        "image_size": size,
        "mean": (0.5,) * size[0],
        "std": (0.25,) * size[0],
        "augmentation": Augmentation(pad=2, flip=True),
    }
    return ImageData(**{**values, **changes})


@pytest.fixture(scope="module")
def file_data(tmp_path_factory):
    """Twelve images of 80 rows and 100 columns in files."""
    folder = tmp_path_factory.mktemp("files")
    images = noise(12, 80, 100, 3)
    paths = tuple(folder / f"{n}.png" for n in range(12))
    for path, image in zip(paths, images, strict=True):
        Image.fromarray(image.numpy()).save(path)
    split = FileSplit(FolderFiles(paths), torch.arange(12), torch.arange(12))
    augmentation = Augmentation(resized_crop=True, flip=True)
    return memory_data(12, train=split, test=split, image_size=(3, 72, 72), mean=(0.5,) * 3, augmentation=augmentation)


def load(data, split=None, **options):
    options = {"batch_size": 16, "train": True, "seed": 0, "device": "cpu", "workers": 0, **options}
    return make_loader(split or data.train, data, **options)


def epoch(loader):
    batches = list(loader)
    return torch.cat([images for images, _ in batches]), torch.cat([labels for _, labels in batches])


def same(first, second):
    return all(torch.equal(one, other) for one, other in zip(first, second, strict=True))


class TestBatchSizes:
    @pytest.mark.parametrize(
        ("samples", "train", "drop_last", "expected"),
        [
            (32, True, None, [16, 16]),
            (35, True, None, [16, 16, 3]),
            (33, True, None, [16, 17]),
            (33, False, None, [16, 16, 1]),
            (33, True, False, [16, 16, 1]),
            (35, True, True, [16, 16]),
            (33, False, True, [16, 16]),
            (5, True, None, [5]),
            (5, True, True, [5]),
            (1, True, None, [1]),
        ],
    )
    def test_loader_yields_batches_of_the_stated_sizes(self, samples, train, drop_last, expected):
        loader = load(memory_data(samples), train=train, drop_last=drop_last)
        assert [len(labels) for _, labels in loader] == expected
        assert len(loader) == len(expected)

    def test_sizes_add_up_to_all_images_unless_some_are_dropped(self):
        for samples in range(1, 60):
            for batch_size in range(1, 20):
                for merge in (0, 2, 5):
                    assert sum(batch_sizes(samples, batch_size, merge_below=merge, drop_last=False)) == samples


class TestEpochs:
    @pytest.fixture(params=["memory", "files"])
    def data(self, request):
        return memory_data() if request.param == "memory" else request.getfixturevalue("file_data")

    def test_training_shows_every_image_once_in_a_new_order(self, data):
        loader = load(data, batch_size=5)
        orders = [epoch(loader)[1].tolist() for _ in range(2)]
        everything = list(range(len(data.train)))
        assert sorted(orders[0]) == sorted(orders[1]) == everything
        assert len({tuple(order) for order in (*orders, everything)}) == 3

    def test_evaluation_keeps_the_order_and_changes_nothing(self, data):
        loader = load(data, train=False, batch_size=5)
        first = epoch(loader)
        assert first[1].tolist() == list(range(len(data.test)))
        assert same(first, epoch(loader))

    def test_same_seed_and_epoch_give_the_same_batches_bit_for_bit(self, data):
        one, other = load(data), load(data)
        epoch(one)
        later = epoch(one)
        other.epoch = 1
        assert one.epoch == 2
        assert same(later, epoch(other))

    def test_abandoned_epoch_counts_and_leaves_the_next_as_it_is(self, data):
        one, other = load(data, batch_size=5), load(data, batch_size=5)
        next(iter(one))
        epoch(other)
        assert same(epoch(one), epoch(other))

    @pytest.mark.parametrize("change", ["seed", "epoch"])
    def test_other_seed_or_epoch_gives_other_orders_and_crops(self, data, change):
        one, other = load(data), load(data, seed=int(change == "seed"))
        other.epoch = int(change == "epoch")
        (images, labels), (other_images, other_labels) = epoch(one), epoch(other)
        assert not torch.equal(labels, other_labels)
        assert not torch.equal(images[labels.argsort()], other_images[other_labels.argsort()])

    def test_augmentation_seed_is_another_for_every_seed_epoch_and_batch(self):
        plans = [EpochPlan(samples=6, sizes=(2, 2, 2), shuffle=False, seed=seed) for seed in range(4)]
        seeds = {batch.seed for plan in plans for number in range(5) for batch in plan.batches(number)}
        assert len(seeds) == 4 * 5 * 3

    def test_random_state_of_the_caller_is_neither_used_nor_moved(self, data):
        loader, again = load(data), load(data)
        torch.manual_seed(1)
        before = torch.get_rng_state()
        first = epoch(loader)
        assert torch.equal(torch.get_rng_state(), before)
        torch.manual_seed(2)
        assert same(first, epoch(again))

    def test_two_iterators_of_one_loader_do_not_disturb_each_other(self, data):
        loader, reference = load(data, batch_size=5), load(data, batch_size=5)
        pairs = list(zip(loader, loader, strict=True))
        for place in (0, 1):
            joined = [torch.cat(parts) for parts in zip(*(pair[place] for pair in pairs), strict=True)]
            assert same(joined, epoch(reference))

    def test_images_are_normalised_floats_and_labels_whole_numbers(self, data):
        images, labels = next(iter(load(data, batch_size=4)))
        assert images.shape == (4, *data.image_size)
        assert (images.dtype, labels.dtype) == (torch.float32, torch.int64)
        assert images.min() >= -2
        assert images.max() <= 2


class TestMemory:
    def test_evaluation_images_are_those_of_the_split_normalised(self):
        data = memory_data(mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6))
        images, _ = epoch(load(data, train=False))
        mean, std = (np.array(x)[:, None, None] for x in (data.mean, data.std))
        expected = (data.test.images.numpy() / 255 - mean) / std
        assert np.allclose(images.numpy(), expected, atol=1e-5)

    def test_training_images_are_shifts_of_the_image_with_their_label(self):
        data = memory_data(20)
        images, labels = epoch(load(data))
        raw = ((images * 0.25 + 0.5) * 255).round().to(torch.uint8)
        for image, label in zip(raw, labels.tolist(), strict=True):
            original = data.train.images[label]
            assert any(torch.equal(image, one) for one in [*shifts(original, 2), *shifts(original.flip(2), 2)])


class TestFiles:
    def test_number_of_workers_changes_no_bit(self, file_data):
        alone, helped = load(file_data, batch_size=5), load(file_data, batch_size=5, workers=2)
        for _ in range(2):
            assert same(epoch(alone), epoch(helped))

    def test_evaluation_shows_the_centre(self, file_data):
        images, _ = epoch(load(file_data, train=False))
        source = Image.open(file_data.test.files.paths[3])
        side = 80 * 224 / 256
        box = (50 - side / 2, 40 - side / 2, 50 + side / 2, 40 + side / 2)
        expected = np.asarray(source.resize((72, 72), Image.Resampling.BILINEAR, box=box)).transpose(2, 0, 1)
        assert np.allclose(images[3].numpy(), (expected / 255 - 0.5) / 0.25, atol=1e-5)

    def test_shift_and_flip_work_on_files_too(self, file_data):
        data = dataclasses.replace(file_data, augmentation=Augmentation(pad=1, flip=True))
        plain, _ = epoch(load(data, train=False))
        images, labels = epoch(load(data))
        raw, plain = (((x * 0.25 + 0.5) * 255).round().to(torch.uint8) for x in (images, plain))
        for image, label in zip(raw, labels.tolist(), strict=True):
            original = plain[label]
            assert any(torch.equal(image, one) for one in [*shifts(original, 1), *shifts(original.flip(2), 1)])

    @pytest.mark.parametrize("workers", [0, 1])
    def test_image_that_breaks_later_is_named_without_a_page_of_traceback(self, file_data, tmp_path, workers):
        paths = list(file_data.train.files.paths)
        paths[7] = tmp_path / "gone.png"
        broken = FileSplit(FolderFiles(tuple(paths)), torch.arange(12), torch.arange(12))
        with pytest.raises(DataError, match=r"^cannot read the image .*gone\.png: .*No such file") as caught:
            epoch(load(file_data, broken, workers=workers))
        assert "Traceback" not in str(caught.value)


class TestRefusals:
    @pytest.mark.parametrize("options", [{"batch_size": 0}, {"workers": -1}])
    def test_numbers_out_of_range_are_refused(self, options):
        with pytest.raises(OptionError, match=r"cannot load with batch_size=\d+ and workers=-?\d+: expected"):
            load(memory_data(), **options)

    def test_empty_split_is_refused(self):
        data = memory_data()
        with pytest.raises(DataError, match="the split has no images"):
            make_loader(data.train.subset([]), data, batch_size=2, train=True, seed=0, device="cpu")

    def test_foreign_split_is_refused(self):
        with pytest.raises(DataError, match="cannot load batches of a list: expected a MemorySplit or a FileSplit"):
            load(memory_data(), [1, 2, 3])

    def test_augmentation_that_crops_twice_is_refused(self):
        with pytest.raises(OptionError, match="both pad=4 and resized_crop"):
            Augmentation(pad=4, resized_crop=True)

    def test_negative_padding_is_refused(self):
        with pytest.raises(OptionError, match="pad=-1: expected 0"):
            Augmentation(pad=-1)


def shifts(image, pad):
    """Every crop that random_crop may take, the slow way (image: [channels, rows, columns])."""
    channels, height, width = image.shape
    padded = torch.zeros(channels, height + 2 * pad, width + 2 * pad, dtype=image.dtype)
    padded[:, pad : pad + height, pad : pad + width] = image
    return [
        padded[:, top : top + height, left : left + width] for top in range(2 * pad + 1) for left in range(2 * pad + 1)
    ]


class TestAugmentation:
    def test_crops_are_all_the_shifts_and_equally_likely(self):
        image = noise(3, 6, 5)
        crops = random_crop(image.expand(4500, -1, -1, -1), 1, seeded())
        counts = [(crops == shift).all(dim=(1, 2, 3)).sum().item() for shift in shifts(image, 1)]
        assert sum(counts) == 4500
        assert min(counts) > 400  # 500 expected, standard deviation 21
        assert max(counts) < 600

    def test_flip_mirrors_about_half_of_the_images_left_and_right(self):
        images = noise(1000, 2, 3, 4)
        flipped = random_flip(images, seeded())
        kept = (flipped == images).all(dim=(1, 2, 3))
        mirrored = (flipped == torch.from_numpy(images.numpy()[..., ::-1].copy())).all(dim=(1, 2, 3))
        assert torch.equal(kept, ~mirrored)
        assert 420 < kept.sum() < 580

    def test_boxes_lie_in_the_image_and_have_the_stated_areas_and_shapes(self):
        left, top, right, bottom = random_boxes(2000, 60, 80, seeded()).unbind(1)
        assert left.min() >= 0
        assert top.min() >= 0
        assert right.max() <= 80
        assert bottom.max() <= 60
        areas, shapes = (right - left) * (bottom - top) / 4800, (right - left) / (bottom - top)
        assert 0.079 < areas.min() < 0.1
        assert areas.max() > 0.9
        assert 0.749 < shapes.min() < 0.76
        assert 1.32 < shapes.max() < 1.334

    def test_resized_crop_shows_the_box_at_full_size(self):
        rows, columns = torch.meshgrid(torch.arange(40.0), torch.arange(50.0), indexing="ij")
        ramp = torch.stack([4 * columns, 4 * rows]).to(torch.uint8)  # so that a pixel tells where it comes from
        cut = random_resized_crop(ramp.expand(8, -1, -1, -1), seeded()).float()
        for image, (left, top, right, bottom) in zip(cut, random_boxes(8, 40, 50, seeded()), strict=True):
            across = left + (torch.arange(50) + 0.5) * (right - left) / 50 - 0.5
            down = top + (torch.arange(40) + 0.5) * (bottom - top) / 40 - 0.5
            assert (image[0] - 4 * across.clamp(0, 49)).abs().max() <= 0.51
            assert (image[1] - 4 * down.clamp(0, 39)[:, None]).abs().max() <= 0.51

    def test_resized_crop_keeps_shape_and_type_in_a_loader(self):
        data = memory_data(augmentation=Augmentation(resized_crop=True))
        assert next(iter(load(data)))[0].shape == (16, 3, 6, 5)
