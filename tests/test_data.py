"""Data sets: what a specification gives, and what is refused before any training."""

import io
import json
import math
import os
import pickle
from dataclasses import replace
from hashlib import md5
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from torchvision.datasets import CIFAR10
from torchvision.transforms import v2

from transprune.data import (
    Augmentation,
    FileSplit,
    ImageData,
    MemorySplit,
    encoded_images,
    load_data,
    make_loader,
    preprocessing,
    said_of_left_out,
    split_halves,
)
from transprune.data.encoded_images import decode, fit_images, mean_and_std, moments, sample_places, standard_view
from transprune.data.imagefolder import FolderFiles
from transprune.errors import DataError, OptionError


def picture(seed, size=(8, 8), mode="RGB"):
    rng = np.random.default_rng(seed)
    shape = size if mode == "L" else (*size, len(mode))
    return Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8), mode)


def encode(image, kind="PNG"):
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()


def write_folder(root, *, classes=("cat", "dog"), parts=("train", "val"), count=3, **options):
    for part in parts:
        for label, name in enumerate(classes):
            folder = root / part / name
            folder.mkdir(parents=True)
            for number in range(count):
                picture(100 * label + number, **options).save(folder / f"{number}.png")
    return root


def write_and_load(root):
    return load_data(f"imagefolder:{write_folder(root)}")


def write_table(path, labels, *, images=None, names=None, image_column="image", label_column="label"):
    images = images or [encode(picture(number)) for number in range(len(labels))]
    cells = [{"bytes": data, "path": None} for data in images]
    struct = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    table = pa.table({image_column: pa.array(cells, struct), label_column: pa.array(labels, pa.int64())})
    if names:
        features = {label_column: {"names": list(names), "_type": "ClassLabel"}}
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path)


def write_tables(root, **options):
    write_table(root / "train.parquet", [0, 1, 0, 1], **options)
    write_table(root / "test.parquet", [1, 0], **options)
    return root


@pytest.fixture(scope="module")
def digits():
    return load_data("digits")


class TestDigits:
    def test_has_every_image_of_scikit_learn_exactly_once(self, digits):
        from sklearn.datasets import load_digits

        source = np.rint(load_digits().images * 255 / 16).astype(np.uint8)
        ours = torch.cat([digits.train.images, digits.test.images])[:, 0].numpy()
        assert sorted(image.tobytes() for image in ours) == sorted(image.tobytes() for image in source)

    def test_keeps_each_label_with_its_image(self, digits):
        from sklearn.datasets import load_digits

        source = load_digits()
        label_of = {
            np.rint(image * 255 / 16).astype(np.uint8).tobytes(): label
            for image, label in zip(source.images, source.target, strict=True)
        }
        for split in (digits.train, digits.test):
            expected = [label_of[image.numpy().tobytes()] for image in split.images[:, 0]]
            assert split.labels.tolist() == expected

    def test_split_is_four_to_one_in_every_class_and_always_the_same(self, digits):
        train, test = digits.train.labels.bincount(), digits.test.labels.bincount()
        assert ((train / (train + test)) - 0.8).abs().max() < 0.005
        assert torch.equal(load_data("digits").test.images, digits.test.images)

    def test_describes_itself(self, digits):
        assert digits.classes == tuple("0123456789")
        assert digits.image_size == (1, 8, 8)
        assert digits.augmentation == Augmentation(pad=1, flip=False)

    def test_mean_and_std_are_those_of_the_training_images(self, digits):
        pixels = digits.train.images.numpy() / 255
        assert digits.mean == (round(pixels.mean(), 4),)
        assert digits.std == (round(pixels.std(), 4),)

    def test_other_image_size_repeats_channels_and_interpolates(self, digits):
        large = load_data("digits", image_size=(3, 32, 32))
        images, labels = next(iter(make_loader(large.test, large, batch_size=4, train=False, seed=0, device="cpu")))
        assert images.shape == (4, 3, 32, 32)
        assert torch.equal(images[:, 0], images[:, 2])
        assert torch.equal(labels, digits.test.labels[:4])
        expected = torch.nn.functional.interpolate(digits.test.images[:4].float(), (32, 32), mode="bilinear")
        found = images[:, :1] * large.std[0] + large.mean[0]
        assert (found * 255 - expected).abs().max() <= 1  # whole grey levels

    def test_augmentation_can_be_chosen(self):
        assert load_data("digits", augmentation=Augmentation()).augmentation == Augmentation()


class TestSpecification:
    def test_an_unknown_augmentation_is_refused_with_the_nearest(self):
        with pytest.raises(OptionError, match=r"cannot use the augmentation 'shfit': .* did you mean 'shift'"):
            load_data("digits", augmentation="shfit")

    @pytest.mark.parametrize("std", [math.nan, math.inf])
    def test_a_deviation_that_is_not_finite_is_refused(self, std):
        with pytest.raises(DataError, match="every std above 0"):
            load_data("digits", mean=0.5, std=std)

    def test_unknown_kind_is_refused_with_the_nearest(self):
        with pytest.raises(DataError, match=r"'cifar:x'.*digits, cifar10:DIR.*did you mean cifar10"):
            load_data("cifar:x")

    def test_something_far_off_is_refused_without_a_guess(self):
        with pytest.raises(DataError, match=r"expected one of digits.*parquet:DIR, images:DIR$"):
            load_data("zzzz")

    @pytest.mark.parametrize("spec", ["cifar10", "imagefolder:", "parquet"])
    def test_missing_folder_part_is_refused(self, spec):
        with pytest.raises(DataError, match=r"does not say in which folder; expected \w+:DIR"):
            load_data(spec)

    def test_folder_part_that_means_nothing_is_refused(self):
        with pytest.raises(DataError, match="digits needs no folder"):
            load_data("digits:somewhere")

    @pytest.mark.parametrize("kind", ["imagefolder", "parquet"])
    def test_missing_folder_is_refused(self, kind, tmp_path):
        with pytest.raises(DataError, match=r"there is no folder .*nowhere"):
            load_data(f"{kind}:{tmp_path / 'nowhere'}")

    @pytest.mark.parametrize("size", [(2, 8, 8), (1, 0, 8), 16, (16, 16), (1, 16.5, 16), (1, 1, 8, 8)])
    def test_impossible_image_size_is_refused(self, size):
        with pytest.raises(DataError, match="expected 1 or 3 channels"):
            load_data("digits", image_size=size)


class TestCifar:
    @pytest.fixture
    def folder(self, tmp_path, monkeypatch):
        """Ten images in the layout of CIFAR-10, with torchvision's checksums set to match."""
        files = tmp_path / CIFAR10.base_folder
        files.mkdir()
        sums = {}
        for name, count in (("data_batch_1", 7), ("test_batch", 3)):
            rng = np.random.default_rng(count)
            data = rng.integers(0, 256, (count, 3072), dtype=np.uint8)
            sums[name] = self.write(files / name, {"data": data, "labels": list(range(count))})
        sums["batches.meta"] = self.write(files / "batches.meta", {"label_names": list("abcdefghij")})
        monkeypatch.setattr(CIFAR10, "train_list", [["data_batch_1", sums["data_batch_1"]]])
        monkeypatch.setattr(CIFAR10, "test_list", [["test_batch", sums["test_batch"]]])
        monkeypatch.setattr(CIFAR10, "meta", {**CIFAR10.meta, "md5": sums["batches.meta"]})
        return tmp_path

    @staticmethod
    def write(path, value):
        content = pickle.dumps(value)
        path.write_bytes(content)
        return md5(content).hexdigest()

    def test_images_and_labels_are_those_of_the_files(self, folder):
        data = load_data(f"cifar10:{folder}")
        source = pickle.loads((folder / CIFAR10.base_folder / "test_batch").read_bytes())
        assert np.array_equal(data.test.images.numpy(), source["data"].reshape(-1, 3, 32, 32))
        assert data.train.labels.tolist() == list(range(7))
        assert data.classes == tuple("abcdefghij")
        assert data.augmentation == Augmentation(pad=4, flip=True)

    def test_mean_and_std_are_the_published_ones(self, folder):
        data = load_data(f"cifar10:{folder}")
        assert [255 * x for x in data.mean] == pytest.approx([125.3, 123.0, 113.9])
        assert [255 * x for x in data.std] == pytest.approx([63.0, 62.1, 66.7])

    def test_grey_cifar_has_its_own_mean(self, folder):
        data = load_data(f"cifar10:{folder}", image_size=(1, 32, 32))
        grey = v2.functional.rgb_to_grayscale(data.train.images) / 255
        assert data.mean == pytest.approx([grey.mean().item()], abs=1e-4)

    @pytest.mark.parametrize("kind", ["cifar10", "cifar100"])
    def test_missing_files_are_refused_with_the_way_to_get_them(self, kind, tmp_path):
        with pytest.raises(DataError, match=r"cifar-100?.* is missing or not as .*download it with --download"):
            load_data(f"{kind}:{tmp_path}")

    def test_damaged_file_is_refused(self, folder):
        (folder / CIFAR10.base_folder / "test_batch").write_bytes(b"cut sh")
        with pytest.raises(DataError, match="is missing or not as its authors publish it"):
            load_data(f"cifar10:{folder}")

    def test_failed_download_is_refused_with_its_reason(self, tmp_path, monkeypatch):
        def fail(self):
            raise URLError("no route to host")

        monkeypatch.setattr(CIFAR10, "download", fail)
        with pytest.raises(DataError, match=r"cannot download cifar10.*no route to host"):
            load_data(f"cifar10:{tmp_path}", download=True)


class TestImageFolder:
    def test_small_images_of_one_size_keep_it_and_are_held_in_memory(self, tmp_path):
        data = load_data(f"imagefolder:{write_folder(tmp_path / 'pets', size=(8, 10))}")
        assert isinstance(data.train, MemorySplit)
        assert (data.name, data.image_size, data.classes) == ("pets", (3, 8, 10), ("cat", "dog"))
        assert data.augmentation == Augmentation(pad=4, flip=True)
        assert data.train.labels.tolist() == [0, 0, 0, 1, 1, 1]
        expected = np.asarray(picture(101, size=(8, 10))).transpose(2, 0, 1)
        assert np.array_equal(data.train.images[4].numpy(), expected)

    def test_mean_and_std_are_those_of_the_training_images(self, tmp_path):
        data = load_data(f"imagefolder:{write_folder(tmp_path)}")
        pixels = data.train.images.numpy() / 255
        assert data.mean == pytest.approx(pixels.mean((0, 2, 3)), abs=5e-5)
        assert data.std == pytest.approx(pixels.std((0, 2, 3)), abs=5e-5)

    def test_images_of_differing_sizes_are_decoded_on_demand_at_224(self, tmp_path):
        write_folder(tmp_path, size=(20, 30))
        picture(7, size=(40, 20)).save(tmp_path / "train" / "cat" / "other.png")
        data = load_data(f"imagefolder:{tmp_path}")
        assert isinstance(data.train, FileSplit)
        assert data.image_size == (3, 224, 224)
        assert data.augmentation == Augmentation(resized_crop=True, flip=True)

    def test_images_of_one_large_size_are_decoded_on_demand_at_224(self, tmp_path):
        data = load_data(f"imagefolder:{write_folder(tmp_path, size=(65, 64), count=1)}")
        assert isinstance(data.test, FileSplit)
        assert data.image_size == (3, 224, 224)

    def test_small_image_size_is_resized_to_and_held_in_memory(self, tmp_path):
        data = load_data(f"imagefolder:{write_folder(tmp_path, size=(40, 60))}", image_size=(1, 16, 16))
        assert isinstance(data.train, MemorySplit)
        expected = picture(1, size=(40, 60)).convert("L").resize((16, 16), Image.Resampling.BILINEAR)
        assert np.array_equal(data.train.images[1, 0].numpy(), np.asarray(expected))

    def test_large_sets_of_small_images_are_decoded_on_demand(self, tmp_path, monkeypatch):
        folder = write_folder(tmp_path)
        held = load_data(f"imagefolder:{folder}")
        monkeypatch.setattr(encoded_images, "MEMORY_LIMIT", 100)
        data = load_data(f"imagefolder:{folder}")
        assert isinstance(data.train, FileSplit)
        assert (data.image_size, data.mean, data.std) == (held.image_size, held.mean, held.std)
        assert data.augmentation == held.augmentation

    @pytest.mark.parametrize("mode", ["L", "RGBA", "LA"])
    def test_other_kinds_of_pixels_become_rgb(self, mode, tmp_path):
        data = load_data(f"imagefolder:{write_folder(tmp_path, mode=mode)}")
        expected = np.asarray(picture(0, mode=mode).convert("RGBA").convert("RGB")).transpose(2, 0, 1)
        assert np.array_equal(data.train.images[0].numpy(), expected)

    def test_palette_with_transparency_is_read_without_a_warning(self, tmp_path):
        write_folder(tmp_path)
        source = picture(3).convert("P")
        source.save(tmp_path / "train" / "cat" / "0.png", transparency=bytes(range(256)))
        data = load_data(f"imagefolder:{tmp_path}")
        assert np.array_equal(data.train.images[0].numpy(), np.asarray(source.convert("RGB")).transpose(2, 0, 1))

    def test_files_that_are_no_images_by_their_ending_are_counted(self, tmp_path):
        write_folder(tmp_path)
        for name in ("train/cat/a.gif", "train/cat/b.GIF", "val/dog/c.gif", "train/dog/d.jfif", "val/cat/notes"):
            (tmp_path / name).write_bytes(b"")
        for name in ("train/cat/.DS_Store", "train/readme.txt", "labels.csv", "val/dog/.e.gif"):
            (tmp_path / name).write_bytes(b"")
        (tmp_path / "train" / ".cache").mkdir()
        (tmp_path / "train" / ".cache" / "f.gif").write_bytes(b"")
        data = load_data(f"imagefolder:{tmp_path}")
        assert len(data.train) == len(data.test) == 6
        assert data.left_out == {".gif": 3, ".jfif": 1, "": 1}
        said = said_of_left_out(data)
        assert said == "5 files are no image by the ending (3 .gif, 1 .jfif, 1 without an ending)"

    def test_nothing_is_said_where_no_file_is_left_out(self, tmp_path):
        assert said_of_left_out(load_data(f"imagefolder:{write_folder(tmp_path)}")) == ""

    def test_validation_goes_before_test_and_hidden_folders_are_no_classes(self, tmp_path):
        write_folder(tmp_path, parts=("train", "val"))
        (tmp_path / "test").mkdir()
        (tmp_path / "train" / ".cache").mkdir()
        assert load_data(f"imagefolder:{tmp_path}").classes == ("cat", "dog")

    def test_test_folder_serves_where_there_is_no_validation(self, tmp_path):
        assert len(load_data(f"imagefolder:{write_folder(tmp_path, parts=('train', 'test'))}").test) == 6

    def test_missing_training_images_are_refused(self, tmp_path):
        write_folder(tmp_path, parts=("val",))
        with pytest.raises(DataError, match=r"it has no folder 'train'; expected DIR/train/CLASS"):
            load_data(f"imagefolder:{tmp_path}")

    def test_without_test_images_a_share_of_the_training_images_is_taken_and_said(self, tmp_path, capsys):
        write_folder(tmp_path, parts=("train",))
        first, again = (load_data(f"imagefolder:{tmp_path}") for _ in range(2))
        assert (len(first.train), len(first.test)) == (4, 2)
        assert torch.equal(first.test.images, again.test.images)
        assert first.test.labels.tolist() == [0, 1]
        together = torch.cat([first.train.images, first.test.images])
        assert len(together.unique(dim=0)) == len(write_and_load(tmp_path / "both").train.images.unique(dim=0))
        assert first.divided in capsys.readouterr().err
        assert "2 of the 6 training images" in first.divided
        assert write_and_load(tmp_path / "other").divided == ""

    def test_names_that_begin_with_a_dot_count_nowhere(self, tmp_path):
        write_folder(tmp_path)
        hidden = ("train/cat/._0.png", "val/dog/.ipynb_checkpoints/0.png", "train/cat/.thumbs/deep/1.png")
        for name in hidden:
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_bytes(b"no image")
        assert len(load_data(f"imagefolder:{tmp_path}").train) == 6
        assert len(load_data(f"images:{tmp_path}").train) == 12

    @pytest.mark.parametrize("delimiter", [",", ";", "\t"])
    def test_tables_name_the_classes(self, delimiter, tmp_path):
        for part, count in (("train", 4), ("val", 2)):
            (tmp_path / part).mkdir()
            for number in range(count):
                picture(number).save(tmp_path / part / f"{number}.png")
            where = "" if part == "val" else "train/"
            named = [(f"{where}{number}.png", "8", ("cat", "dog")[number % 2]) for number in range(count)]
            rows = [("file", "size", "label"), *named]
            text = "\n".join(delimiter.join(row) for row in rows) + "\n\n"
            (tmp_path / f"{part}.csv").write_text(text, encoding="utf-8-sig")
        data = load_data(f"imagefolder:{tmp_path}")
        assert (data.classes, data.train.labels.tolist()) == (("cat", "dog"), [0, 1, 0, 1])
        assert torch.equal(data.test.images, data.train.images[:2])
        (tmp_path / "val.csv").unlink()
        assert "2 of the 4 training images" in load_data(f"imagefolder:{tmp_path}").divided

    @pytest.mark.parametrize(("between", "dog"), [("; ", "hot dog"), ("|", "hot dog"), (" ", "dog")])
    def test_a_column_of_labels_may_name_several_classes_or_none(self, tmp_path, between, dog):
        rows = [["cat", dog], [], [dog, "cow"], ["cat", "cow", dog]]
        for part in ("train", "val"):
            (tmp_path / part).mkdir()
            lines = ["file,labels"]
            for number, row in enumerate(rows if part == "train" else [[dog], ["cat"]]):  # a rare class may be missing
                picture(number).save(tmp_path / part / f"{number}.png")
                lines.append(f"{number}.png,{between.join(row)}")
            (tmp_path / f"{part}.csv").write_text("\n".join(lines))
        data = load_data(f"imagefolder:{tmp_path}")
        assert data.classes == tuple(sorted(("cat", "cow", dog)))
        assert data.train.labels.tolist() == [[float(name in row) for name in data.classes] for row in rows]
        assert data.test.labels.tolist() == [[float(name == other) for name in data.classes] for other in (dog, "cat")]
        first, second = split_halves(data.train, fraction=0.75, seed=0)
        assert (first.labels.shape, second.labels.shape) == ((3, 3), (1, 3))
        with pytest.raises(DataError, match=r"image 1 has label \[0\.0, 2\.0, 0\.0\]"):
            replace(data, train=replace(data.train, labels=torch.tensor([[0.0, 1, 0], [0, 2, 0]] * 2)))

    @pytest.mark.parametrize("val", ["file,labels\n0.png,hot dog;\n", "file,label\n0.png,hot dog\n"])
    def test_a_table_may_have_a_column_for_each_class(self, tmp_path, val):
        for number in range(3):
            picture(number).save(tmp_path / f"{number}.png")
        (tmp_path / "train.csv").write_text("file,hot dog,cat\n0.png,1,0\n1.png,1, 1\n2.png,0,0\n\n")
        (tmp_path / "val.csv").write_text(val)
        data = load_data(f"imagefolder:{tmp_path}")
        assert data.classes == ("cat", "hot dog")
        assert data.train.labels.tolist() == [[0, 1], [1, 1], [0, 0]]
        assert data.test.labels.tolist() == [[0, 1]]

    @pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no named pipes")
    def test_what_is_no_file_is_refused_and_not_waited_for(self, tmp_path):
        write_folder(tmp_path)
        os.mkfifo(tmp_path / "train" / "cat" / "0.png.png")
        with pytest.raises(DataError, match=r"cannot read the image .*0\.png\.png"):
            load_data(f"imagefolder:{tmp_path}")

    def test_links_to_folders_do_not_lead_back(self, tmp_path):
        write_folder(tmp_path)
        expected = len(load_data(f"imagefolder:{tmp_path}").train)
        (tmp_path / "train" / "cat" / "back").symlink_to(tmp_path / "train")
        assert len(load_data(f"imagefolder:{tmp_path}").train) == expected

    @pytest.mark.parametrize(
        ("text", "problem"),
        [
            ("file,labels\n0.png,\n", "no image of it has a class"),
            ("", "not enough values"),
            ("file\n0.png\n", "it has the columns file"),
            ("file,label\n", "0 rows"),
            ("0.png,cat\n0.png,cat\n", "its first line, where the heading belongs, names the image '0.png'"),
            (
                "file,fold,breed\n0.png,1,cat\n0.png,2,cat\n",
                "none of its columns file, fold, breed is called label, class",
            ),
            ("file,label\n0.png,\n", "line 2 names no file or no class"),
            ("file,label\n0.png,cat\n9.png,dog\n", r"line 3: neither .*9\.png nor .*train/9\.png is there"),
            ("file,label\n0.png,cat\n0.png,dog\n", "gives '0.png' a second class, and an image has one"),
        ],
    )
    def test_a_malformed_table_is_refused_by_its_line(self, text, problem, tmp_path):
        (tmp_path / "train.csv").write_text(text)
        picture(0).save(tmp_path / "0.png")
        with pytest.raises(DataError, match=rf"cannot read the classes of images from .*train\.csv: .*{problem}"):
            load_data(f"imagefolder:{tmp_path}")

    def test_a_table_beside_class_folders_is_none_of_ours(self, tmp_path):
        write_folder(tmp_path)
        (tmp_path / "train.csv").write_text("anything")
        assert load_data(f"imagefolder:{tmp_path}").classes == ("cat", "dog")

    def test_folder_without_classes_is_refused(self, tmp_path):
        write_folder(tmp_path, classes=())
        for part in ("train", "val"):
            (tmp_path / part).mkdir()
            picture(0).save(tmp_path / part / "0.png")
        with pytest.raises(DataError, match=r"train: it has no class folders"):
            load_data(f"imagefolder:{tmp_path}")

    def test_differing_classes_are_refused_by_name(self, tmp_path):
        write_folder(tmp_path, parts=("train",), classes=("cat", "dog"))
        write_folder(tmp_path, parts=("val",), classes=("cat", "fox"))
        with pytest.raises(DataError, match=r"'dog' is only in .*train, 'fox' is only in .*val"):
            load_data(f"imagefolder:{tmp_path}")

    @pytest.mark.parametrize("part", ["train", "val"])
    def test_class_without_images_is_refused(self, part, tmp_path):
        write_folder(tmp_path)
        for path in (tmp_path / part / "dog").iterdir():
            path.rename(path.with_suffix(".txt"))
        with pytest.raises(DataError, match=rf"{part}/dog: it holds no image file \(.jpg, "):
            load_data(f"imagefolder:{tmp_path}")

    @pytest.mark.parametrize("part", ["train", "val"])
    @pytest.mark.parametrize("size", [(32, 32), (80, 80)], ids=["in-memory", "on-demand"])
    @pytest.mark.parametrize("kind", ["png", "jpg"])
    def test_truncated_image_is_refused_by_name(self, part, size, kind, tmp_path):
        write_folder(tmp_path, size=size)
        content = encode(picture(5, size=size), {"png": "PNG", "jpg": "JPEG"}[kind])
        path = tmp_path / part / "dog" / f"2.{kind}"
        path.write_bytes(content[: len(content) * 4 // 5])
        with pytest.raises(DataError, match=rf"cannot read the image .*{part}/dog/2\.{kind}: .*truncated"):
            load_data(f"imagefolder:{tmp_path}")

    @pytest.mark.parametrize("content", [b"", b"<html>not found</html>"])
    def test_file_that_is_no_image_is_refused_by_name(self, content, tmp_path):
        (write_folder(tmp_path) / "val" / "cat" / "1.png").write_bytes(content)
        with pytest.raises(DataError, match=r"val/cat/1\.png: it is not an image"):
            load_data(f"imagefolder:{tmp_path}")

    def test_sixteen_bit_image_is_refused_rather_than_read_as_white(self, tmp_path):
        deep = Image.fromarray(np.full((8, 8), 40000, dtype=np.uint16))
        deep.save(write_folder(tmp_path) / "train" / "cat" / "0.png")
        with pytest.raises(DataError, match=r"cat/0\.png: its pixels are of mode 'I;16', not 8 bits"):
            load_data(f"imagefolder:{tmp_path}")


class TestView:
    def test_large_image_is_shown_as_by_resize_and_center_crop(self, tmp_path):
        rows, columns = np.mgrid[0:300, 0:400]
        smooth = np.stack([rows * 0.8, columns * 0.6, (rows + columns) * 0.3], axis=2).astype(np.uint8)
        Image.fromarray(smooth).save(tmp_path / "0.png")
        size = (3, 224, 224)
        found = decode(FolderFiles((tmp_path / "0.png",)), 0, size, standard_view(size))
        usual = v2.Compose([v2.PILToTensor(), v2.Resize(256), v2.CenterCrop(224)])(Image.fromarray(smooth))
        assert found.shape == size
        assert (found.float() - usual.float()).abs().max() <= 2

    @pytest.mark.parametrize(
        ("image_size", "box", "kind"),
        [
            ((3, 16, 24), "the whole image", "RGB"),
            ((1, 64, 64), "the whole image", "grey"),
            ((3, 96, 64), "the largest central box of the shape 96 x 64 (rows x columns), its sides", "RGB"),
        ],
    )
    def test_the_way_to_the_input_is_described_as_it_is_gone(self, tmp_path, image_size, box, kind):
        data = load_data(f"imagefolder:{write_folder(tmp_path, size=(150, 110), count=1)}", image_size=image_size)
        described = preprocessing(data)
        _, rows, columns = image_size
        assert described["how"].startswith(box)
        assert f" is resized to {rows} x {columns} (rows x columns) bilinearly" in described["how"]
        assert f"as {kind}; pixels from 0 to 1" in described["how"]
        assert described["classes"] == ["cat", "dog"]
        # The description, followed step by step:
        image = picture(0, size=(150, 110)).convert("RGB" if kind == "RGB" else "L")
        scale = min(150 / rows, 110 / columns) * 7 / 8
        height, width = (150, 110) if box == "the whole image" else (scale * rows, scale * columns)
        left, top = (110 - width) / 2, (150 - height) / 2
        resized = image.resize((columns, rows), Image.Resampling.BILINEAR, box=(left, top, left + width, top + height))
        pixels = torch.from_numpy(np.asarray(resized).reshape(rows, columns, -1) / 255).permute(2, 0, 1)
        mean, std = (torch.tensor(described[name])[:, None, None] for name in ("mean", "std"))
        batches = make_loader(data.test, data, batch_size=2, train=False, seed=0, device="cpu")
        images, _ = next(iter(batches))
        assert torch.allclose(images[0], ((pixels - mean) / std).float(), atol=1e-5)

    def test_images_in_memory_are_described_as_shown_whole(self, digits):
        large = load_data("digits", image_size=(3, 96, 96))
        assert preprocessing(large)["how"].startswith("the whole image is resized to 96 x 96")

    def test_view_for_an_oblong_size_keeps_the_shape_of_things(self):
        left, top, right, bottom = standard_view((3, 100, 200))(512, 512)
        assert (right - left) / (bottom - top) == pytest.approx(2)
        assert (left + right, top + bottom) == pytest.approx((512, 512))
        assert right - left == pytest.approx(512 * 224 / 256)


class TestParquet:
    def test_images_labels_and_names_are_those_of_the_files(self, tmp_path):
        data = load_data(f"parquet:{write_tables(tmp_path / 'pets', names=('cat', 'dog'))}")
        assert (data.name, data.classes, data.image_size) == ("pets", ("cat", "dog"), (3, 8, 8))
        assert data.train.labels.tolist() == [0, 1, 0, 1]
        assert data.test.labels.tolist() == [1, 0]
        assert np.array_equal(data.train.images[3].numpy(), np.asarray(picture(3)).transpose(2, 0, 1))

    def test_classes_without_names_are_called_by_their_numbers(self, tmp_path):
        assert load_data(f"parquet:{write_tables(tmp_path)}").classes == ("0", "1")

    def test_malformed_metadata_is_no_obstacle(self, tmp_path):
        write_tables(tmp_path)
        table = pq.read_table(tmp_path / "train.parquet").replace_schema_metadata({"huggingface": "{"})
        pq.write_table(table, tmp_path / "train.parquet")
        assert load_data(f"parquet:{tmp_path}").classes == ("0", "1")

    def test_shards_in_a_data_folder_follow_each_other_in_order(self, tmp_path):
        for shard, labels in enumerate(([0, 0], [1], [2, 1])):
            images = [encode(picture(10 * shard + n)) for n in range(len(labels))]
            write_table(tmp_path / "data" / f"train-0000{shard}-of-00003.parquet", labels, images=images)
        write_table(tmp_path / "data" / "validation-00000-of-00001.parquet", [0])
        data = load_data(f"parquet:{tmp_path}")
        assert data.train.labels.tolist() == [0, 0, 1, 2, 1]
        assert np.array_equal(data.train.images[4].numpy(), np.asarray(picture(21)).transpose(2, 0, 1))
        assert len(data.test) == 1

    def test_missing_shard_is_refused(self, tmp_path):
        write_tables(tmp_path)
        (tmp_path / "train.parquet").rename(tmp_path / "train-00001-of-00003.parquet")
        with pytest.raises(DataError, match="2 of 3 shards are missing, the first is number 0"):
            load_data(f"parquet:{tmp_path}")

    def test_other_column_names_are_found(self, tmp_path):
        write_tables(tmp_path, image_column="img", label_column="digit")
        assert load_data(f"parquet:{tmp_path}").test.labels.tolist() == [1, 0]

    def test_label_column_is_preferred_by_name_among_others(self, tmp_path):
        write_tables(tmp_path)
        table = pq.read_table(tmp_path / "test.parquet")
        pq.write_table(table.add_column(0, "index", pa.array([7, 8])), tmp_path / "test.parquet")
        assert load_data(f"parquet:{tmp_path}").test.labels.tolist() == [1, 0]

    def test_large_images_are_decoded_on_demand(self, tmp_path):
        write_tables(tmp_path)
        write_table(tmp_path / "test.parquet", [0, 1], images=[encode(picture(n, size=(90, 70))) for n in (1, 2)])
        data = load_data(f"parquet:{tmp_path}")
        assert isinstance(data.test, FileSplit)
        loader = make_loader(data.test, data, batch_size=2, train=False, seed=0, device="cpu", workers=0)
        assert next(iter(loader))[0].shape == (2, 3, 224, 224)

    @pytest.mark.parametrize("part", ["train", "test"])
    def test_missing_part_is_refused(self, part, tmp_path):
        (write_tables(tmp_path) / f"{part}.parquet").unlink()
        with pytest.raises(DataError, match=rf"no files of the {part} split .*expected train\*\.parquet"):
            load_data(f"parquet:{tmp_path}")

    def test_file_cut_short_is_refused_by_name(self, tmp_path):
        path = write_tables(tmp_path) / "test.parquet"
        path.write_bytes(path.read_bytes()[:-20])
        with pytest.raises(DataError, match=r"cannot read .*test\.parquet: .*expected a complete parquet file"):
            load_data(f"parquet:{tmp_path}")

    def test_file_without_rows_is_refused(self, tmp_path):
        write_table(write_tables(tmp_path) / "test.parquet", [])
        with pytest.raises(DataError, match=r"test\.parquet: no rows"):
            load_data(f"parquet:{tmp_path}")

    @pytest.mark.parametrize(("column", "expected"), [("image", "one struct column"), ("label", "one integer column")])
    def test_missing_column_is_refused(self, column, expected, tmp_path):
        path = write_tables(tmp_path) / "train.parquet"
        pq.write_table(pq.read_table(path).drop_columns([column]), path)
        with pytest.raises(DataError, match=rf"train\.parquet: expected {expected}.*it has the columns"):
            load_data(f"parquet:{tmp_path}")

    @pytest.mark.parametrize("label", [2, -1])
    def test_label_out_of_range_is_refused_by_row(self, label, tmp_path):
        write_table(write_tables(tmp_path) / "test.parquet", [0, 1, label])
        with pytest.raises(DataError, match=rf"label {label} in row 2 of .*test\.parquet: expected 0 to 1"):
            load_data(f"parquet:{tmp_path}")

    def test_row_without_label_is_refused(self, tmp_path):
        write_table(write_tables(tmp_path) / "train.parquet", [0, 1, None])
        with pytest.raises(DataError, match=r"row 2 of .*train\.parquet: it has no label"):
            load_data(f"parquet:{tmp_path}")

    def test_row_without_image_is_refused(self, tmp_path):
        write_table(write_tables(tmp_path) / "train.parquet", [0, 1], images=[encode(picture(0)), None])
        with pytest.raises(DataError, match=r"row 1 of .*train\.parquet: it has no image bytes"):
            load_data(f"parquet:{tmp_path}")

    def test_broken_image_is_refused_by_its_row_in_its_shard(self, tmp_path):
        write_tables(tmp_path)
        (tmp_path / "train.parquet").rename(tmp_path / "train-00000-of-00002.parquet")
        images = [encode(picture(0)), encode(picture(1))[:60]]
        write_table(tmp_path / "train-00001-of-00002.parquet", [0, 1], images=images)
        with pytest.raises(DataError, match=r"image in row 1 of .*train-00001-of-00002\.parquet: "):
            load_data(f"parquet:{tmp_path}")

    @pytest.mark.parametrize(("names", "called"), [(("a", "b", "c"), r"label 2 \('c'\)"), (None, "label 0;")])
    def test_class_without_training_images_is_refused(self, names, called, tmp_path):
        write_table(tmp_path / "train.parquet", [0, 1] if names else [1, 2], names=names)
        write_table(tmp_path / "test.parquet", [1], names=names)
        with pytest.raises(DataError, match=f"no training image has {called}"):
            load_data(f"parquet:{tmp_path}")

    def test_differing_class_names_are_refused(self, tmp_path):
        write_tables(tmp_path, names=("cat", "dog"))
        write_table(tmp_path / "test.parquet", [0, 1], names=("dog", "cat"))
        with pytest.raises(DataError, match="the class names of the training and test files differ"):
            load_data(f"parquet:{tmp_path}")


class TestSplits:
    @staticmethod
    def split(labels):
        labels = torch.tensor(labels)
        return MemorySplit(torch.arange(len(labels)).to(torch.uint8).view(-1, 1, 1, 1), labels)

    @pytest.mark.parametrize("fraction", [0.5, 0.2, 0.9])
    def test_halves_hold_every_image_once_and_each_class_in_its_share(self, fraction):
        split = self.split([n % 3 for n in range(90)])
        first, second = split_halves(split, fraction=fraction, seed=1)
        numbers = [half.images.flatten().tolist() for half in (first, second)]
        assert sorted(numbers[0] + numbers[1]) == list(range(90))
        assert first.labels.bincount().tolist() == [round(30 * fraction)] * 3
        assert [n % 3 for n in numbers[0]] == first.labels.tolist()

    def test_halves_depend_on_the_seed_alone(self):
        split = self.split([n % 5 for n in range(100)])
        chosen = [split_halves(split, seed=seed)[0].images.flatten().tolist() for seed in (0, 0, 1)]
        assert chosen[0] == chosen[1] != chosen[2]

    def test_both_parts_get_a_rare_class(self):
        first, second = split_halves(self.split([0] * 50 + [1] * 2), fraction=0.9, seed=0)
        assert 1 in first.labels
        assert 1 in second.labels

    def test_files_are_divided_like_memory(self):
        labels = torch.arange(40) % 4
        files = FileSplit(FolderFiles(tuple(Path(str(n)) for n in range(40))), torch.arange(40), labels)
        first, _ = split_halves(files, seed=3)
        expected, _ = split_halves(self.split(labels.tolist()), seed=3)
        assert first.rows.tolist() == expected.images.flatten().tolist()
        assert torch.equal(first.labels, expected.labels)

    @pytest.mark.parametrize("fraction", [0, 1, -0.5])
    def test_fraction_that_leaves_nothing_is_refused(self, fraction):
        with pytest.raises(OptionError, match="expected a number between 0 and 1"):
            split_halves(self.split([0, 0]), fraction=fraction, seed=0)

    def test_split_that_cannot_be_divided_is_refused(self):
        with pytest.raises(DataError, match="one part would be empty"):
            split_halves(self.split([0]), seed=0)

    def test_subset_follows_the_given_order(self):
        assert self.split([0, 1, 2, 3]).subset([2, 0]).labels.tolist() == [2, 0]

    def test_float_images_are_refused(self):
        with pytest.raises(DataError, match=r"type torch.float32 and shape \[2, 1, 4, 4\]: expected uint8"):
            MemorySplit(torch.zeros(2, 1, 4, 4), torch.zeros(2, dtype=torch.int64))

    def test_labels_that_do_not_match_the_images_are_refused(self):
        with pytest.raises(DataError, match=r"cannot label 2 images .*expected int64 \[2\]"):
            MemorySplit(torch.zeros(2, 1, 4, 4, dtype=torch.uint8), torch.zeros(3, dtype=torch.int64))

    def test_data_set_with_a_label_out_of_range_is_refused(self):
        with pytest.raises(DataError, match=r"test split of 'mine': image 1 has label 2; expected 0 to 1"):
            self.data(test=self.split([0, 2]))

    def test_data_set_with_a_std_of_zero_is_refused(self):
        with pytest.raises(DataError, match=r"cannot normalise 'mine' with .*every std above 0"):
            self.data(std=(0.0,))

    def data(self, **changes):
        values = {
            "name": "mine",
            "train": self.split([0, 1]),
            "test": self.split([0, 1]),
            "classes": ("a", "b"),
            "image_size": (1, 1, 1),
            "mean": (0.5,),
            "std": (0.5,),
            "augmentation": Augmentation(),
        }
        return ImageData(**{**values, **changes})


class TestPixels:
    def test_fitting_to_the_own_size_returns_the_images_themselves(self):
        images = torch.zeros(2, 3, 4, 4, dtype=torch.uint8)
        assert fit_images(images, (3, 4, 4)) is images

    def test_colour_becomes_grey_by_brightness(self):
        image = picture(1)
        grey = fit_images(torch.from_numpy(np.array(image)).permute(2, 0, 1)[None], (1, 8, 8))
        assert (grey[0, 0].int() - torch.from_numpy(np.array(image.convert("L"))).int()).abs().max() <= 1

    def test_constant_images_get_a_std_that_one_can_divide_by(self):
        mean, std = mean_and_std([moments(torch.full((2, 1, 4, 4), 51, dtype=torch.uint8))])
        assert mean == (0.2,)
        assert std == (round(1 / 255, 4),)

    def test_sample_is_spread_evenly_and_complete_if_small(self):
        assert sample_places(3).tolist() == [0, 1, 2]
        places = sample_places(100, most=10).tolist()
        assert places == list(range(0, 100, 10))


def test_one_number_normalises_all_channels():
    data = load_data("digits", image_size=(3, 8, 8), mean=0.5, std=0.25)
    assert (data.mean, data.std) == ((0.5,) * 3, (0.25,) * 3)
