"""Images with labelled boxes, as detectors learn from: folders in the forms of COCO and of YOLO.

`coco:DIR` has annotations in JSON: `DIR/annotations/instances_train*.json` and `instances_val*.json` (or any two files
with the words `train` and `val` or `test` in their names), with the images anywhere below DIR; or
`DIR/train/_annotations.coco.json` and `DIR/valid/_annotations.coco.json` beside their images. `yolo:DIR` has
`data.yaml` (or one other YAML file) with `train`, `val` and `names`, and for `images/…/a.jpg` a file `labels/…/a.txt`
with a line for each object: its class, and the centre, width and height of its box, as shares of the image.

Images are turned as their EXIF says, unless COCO's table has the size of what is stored. Labels are the numbers of
COCO's categories, or of YOLO's classes from 1 on: torchvision's detectors take 0 for the background.
"""

from __future__ import annotations

import json
import logging
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from PIL import ImageOps
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision import tv_tensors
from torchvision.transforms import v2

from transprune.data.encoded_images import check_depth, opened, with_channels
from transprune.data.imagefolder import FolderFiles, images_below
from transprune.errors import DataError, OptionError, first_line
from transprune.options import AugmentationName
from transprune.runtime.files import expanded

COCO, YOLO = "coco:", "yolo:"
"""What data of boxes begin with: `coco:DIR` and `yolo:DIR`."""
SIZE = (3, 320, 320)
"""Channels, rows and columns that images are brought to where nothing is said."""
TRAIN_NAMES = ("train", "training")
TEST_NAMES = (("val", "valid", "validation"), ("test", "testing"))
"""Words for the parts that are measured on, in order of preference."""
MOST_CLASSES = 10_000
"""A detector has an output for each, whatever their names."""
SLACK = 1.0
"""Pixels that a box may be outside of its image by, for rounding; it is cut there."""
ORIENTATION, ON_SIDE = 0x0112, (5, 6, 7, 8)
"""The tag of EXIF that says how an image is turned, and the values that exchange rows and columns."""
Sample = tuple[Tensor, dict[str, Tensor]]

_log = logging.getLogger("transprune.data")


def is_scenes(spec: str) -> bool:
    """Whether data are named as images with boxes."""
    return spec.startswith((COCO, YOLO))


@dataclass(frozen=True, eq=False)
class Scene:
    """An image and what is on it."""

    file: Path
    boxes: Tensor
    """Left, upper, right and lower edges, in pixels of the file [objects, 4]."""
    labels: Tensor
    """int64 [objects]."""
    is_turned: bool = True
    """Whether the boxes are drawn on the image as its EXIF turns it; else as it is stored."""


@dataclass(frozen=True, eq=False)
class Scenes(Dataset[Sample]):
    """Images of one size from 0 to 1 [3, rows, columns], with the boxes and labels of what is on them."""

    scenes: Sequence[Scene]
    size: tuple[int, int]
    """Rows and columns."""
    augmentation: AugmentationName = "none"
    names: Mapping[int, str] = field(default_factory=dict, kw_only=True)
    """Of the classes, by their labels."""

    def __len__(self) -> int:
        return len(self.scenes)

    def __getitem__(self, place: int) -> Sample:
        scene = self.scenes[place]
        with opened(FolderFiles((scene.file,)), 0) as image:
            shown = ImageOps.exif_transpose(image) if scene.is_turned else image
            pixels = v2.functional.pil_to_tensor(with_channels(shown, 3))
        boxes = tv_tensors.BoundingBoxes(scene.boxes, format="XYXY", canvas_size=pixels.shape[1:])
        found, objects = self._changes(tv_tensors.Image(pixels), {"boxes": boxes, "labels": scene.labels})
        return found.as_subclass(Tensor), {name: each.as_subclass(Tensor) for name, each in objects.items()}

    @cached_property
    def _changes(self) -> v2.Transform:
        random: list[v2.Transform] = []
        if self.augmentation == "imagenet":
            random.append(v2.RandomPhotometricDistort())
        if self.augmentation in ("standard", "imagenet"):
            random += [v2.RandomApply([v2.RandomIoUCrop(min_scale=0.5)]), v2.RandomHorizontalFlip()]
        elif self.augmentation == "shift":
            random.append(v2.RandomApply([v2.RandomIoUCrop(min_scale=0.8)]))
        resized: list[v2.Transform] = [
            v2.Resize(list(self.size), antialias=True),
            v2.ClampBoundingBoxes(),  # edges on the border of the image come to lie behind it by rounding
            v2.ToDtype(torch.float32, scale=True),
        ]
        if random:  # what a crop has left of an object may be nothing
            resized.append(v2.SanitizeBoundingBoxes())
        return v2.Compose([*random, *resized])


@dataclass(frozen=True, eq=False)
class SceneData:
    """Scenes to learn from and to measure on."""

    train: DataLoader[Sample]
    test: DataLoader[Sample]
    classes: int
    """How many a detector of torchvision tells apart: the largest label and one more, for the background is 0."""
    size: tuple[int, int, int]
    """Of the images: channels, rows and columns."""

    @property
    def images(self) -> list[Tensor]:
        """One image, as a detector takes them."""
        return [torch.zeros(self.size)]


def load_scenes(
    spec: str,
    *,
    image_size: tuple[int, int, int] | None = None,
    batch_size: int = 8,
    augmentation: AugmentationName = "standard",
) -> SceneData:
    """Images with boxes, in batches of a list of images and a list of dicts with their `boxes` and `labels`.

    Args:
        spec: `coco:DIR` or `yolo:DIR`.
        image_size: Channels (3), rows and columns that all images are brought to, and their boxes; None: `SIZE`.
        batch_size: Images in a batch.
        augmentation: Random changes of the training images: `none`, `shift` (crops), `standard` (crops that keep
            objects, and flips) or `imagenet` (colours, too).

    Raises:
        DataError: A file is missing or malformed, or an object cannot be on its image; where it stands is said.
        OptionError: Images of other than 3 channels are asked for.
    """
    size = image_size or SIZE
    if size[0] != 3:
        raise OptionError(f"cannot bring images with boxes to {size[0]} channels: expected 3 (--image-size 3 …)")
    kind, _, place = spec.partition(":")
    folder = expanded(place)
    if not place or not folder.is_dir():
        raise DataError(f"cannot load data {spec!r}: there is no such folder; expected {kind}:DIR")
    train, test, names = _coco(folder) if spec.startswith(COCO) else _yolo(folder)
    for name, part in (("learn from", train), ("measure on", test)):
        if not any(len(scene.labels) for scene in part):
            raise DataError(f"cannot use {spec!r}: there is no object on the {len(part)} images to {name}")
        counts = [len(scene.labels) for scene in part]
        said = "%s: %d images to %s, with %d objects; %d have none"
        _log.info(said, spec, len(part), name, sum(counts), counts.count(0))
    count = min(batch_size, len(train))
    return SceneData(
        train=DataLoader(
            Scenes(train, size[1:], augmentation, names=names),
            count,
            shuffle=True,
            drop_last=True,
            collate_fn=together,
        ),
        test=DataLoader(Scenes(test, size[1:], names=names), batch_size, collate_fn=together),
        classes=max(names) + 1,
        size=size,
    )


def class_names(batches: object) -> Mapping[int, str]:
    """Names of the classes that `load_scenes` has read, by their labels; of other batches nothing is known."""
    scenes = getattr(batches, "dataset", None)
    return scenes.names if isinstance(scenes, Scenes) else {}


def together(samples: Sequence[Sample]) -> tuple[list[Tensor], list[dict[str, Tensor]]]:
    """A batch, as torchvision's detectors take it: images, and what is on each."""
    return [image for image, _ in samples], [objects for _, objects in samples]


def _sizes(file: Path) -> tuple[tuple[int, int], tuple[int, int]]:
    """Columns and rows of an image as its EXIF turns it, and as it is stored."""
    with opened(FolderFiles((file,)), 0) as image:
        check_depth(image)
        columns, rows = image.size
        is_on_side = image.getexif().get(ORIENTATION, 1) in ON_SIDE
        return (rows, columns) if is_on_side else (columns, rows), (columns, rows)


def _scene(
    file: Path,
    objects: Sequence[tuple[str, list[float], int]],
    size: tuple[int, int],
    form: str,
    *,
    is_turned: bool = True,
) -> Scene:
    """A scene from objects: where each stands, its edges in pixels, its label; `size` is columns and rows.

    Raises:
        DataError: A box cannot be on the image.
    """
    for where, edges, _ in objects:
        left, upper, right, lower = edges
        is_in = min(left, upper) >= -SLACK and right <= size[0] + SLACK and lower <= size[1] + SLACK
        is_on = max(left, 0) < min(right, size[0]) and max(upper, 0) < min(lower, size[1])
        if not all(map(math.isfinite, edges)) or not (is_in and is_on):
            raise DataError(
                f"cannot use {where}: its box goes from ({left:.6g}, {upper:.6g}) to ({right:.6g}, {lower:.6g}) on an "
                f"image of {size[0]} columns and {size[1]} rows, '{file}'; expected {form}"
            )
    boxes = torch.tensor([edges for _, edges, _ in objects], dtype=torch.float32).reshape(-1, 4)
    limits = torch.tensor([*size, *size], dtype=torch.float32)
    labels = torch.tensor([label for *_, label in objects]).long()
    return Scene(file, boxes.clamp_min(0).minimum(limits), labels, is_turned)


# --- COCO


def _coco(folder: Path) -> tuple[list[Scene], list[Scene], dict[int, str]]:
    files = sorted(each for each in folder.rglob("*.json") if not each.name.startswith("."))
    train = _named(files, TRAIN_NAMES, folder)
    test = next((file for names in TEST_NAMES if (file := _named(files, names, folder))), None)
    if train is None or test is None:
        raise DataError(
            f"cannot load data 'coco:{folder}': {_seen(files, folder)}; expected annotations to learn from and to "
            "measure on, such as DIR/annotations/instances_train.json and DIR/annotations/instances_val.json"
        )
    read = [_coco_file(file, folder) for file in (train, test)]
    (_, names), (_, others) = read
    for number in names.keys() & others.keys():
        if names[number] != others[number]:
            raise DataError(
                f"cannot use 'coco:{folder}': category {number} is {names[number]!r} in '{train}' and "
                f"{others[number]!r} in '{test}'; expected the same categories"
            )
    shift = int(0 in (label for scenes, _ in read for scene in scenes for label in scene.labels.tolist()))
    if shift:
        _log.warning("coco:%s: categories count from 0, which detectors take for the background; 1 is added", folder)
        read = [([replace(each, labels=each.labels + 1) for each in part], known) for part, known in read]
    return read[0][0], read[1][0], {label + shift: name for label, name in (names | others).items()}


def _named(files: Sequence[Path], names: Sequence[str], folder: Path) -> Path | None:
    """The file with one of the words in its name, or in that of its folder; of several those of boxes, `instances`.

    Raises:
        DataError: There are several.
    """
    found = [each for each in files if not _words(each.name).isdisjoint(names)]
    found = found or [each for each in files if not _words(each.parent.name).isdisjoint(names)]
    found = [each for each in found if "instances" in each.name] or found
    if len(found) > 1:
        raise DataError(
            f"cannot load data 'coco:{folder}': {_seen(found, folder)}; expected one with {names[0]!r} in its name"
        )
    return found[0] if found else None


def _words(name: str) -> set[str]:
    return set(re.split("[^a-z]+", name.lower()))


def _seen(files: Sequence[Path], folder: Path) -> str:
    return f"of JSON files there are {', '.join(str(each.relative_to(folder)) for each in files[:5]) or 'none'}"


def _coco_file(file: Path, folder: Path) -> tuple[list[Scene], dict[int, str]]:
    """The scenes of a file, and its categories."""
    form = "bbox as x, y, width and height in pixels, with x and y the upper left corner"
    try:
        record = json.loads(file.read_bytes())
        categories = {int(each["id"]): str(each["name"]) for each in record["categories"]}
        images = {each["id"]: each for each in record["images"]}
        if len(images) < len(record["images"]):
            raise DataError(f"cannot use '{file}': several of its images have one id; expected an id for each")
        odd = next((number for number in categories if not 0 <= number < MOST_CLASSES), None)
        if odd is not None:
            raise DataError(
                f"cannot use '{file}': a category has the id {odd}; expected numbers from 0 to {MOST_CLASSES - 1}, "
                "since a detector has an output for each up to the largest"
            )
        objects: dict[Any, list[tuple[str, list[float], int]]] = {number: [] for number in images}
        for place, each in enumerate(record["annotations"]):
            where = f"annotation {place} (id {each.get('id')}) of '{file}'"
            if each["image_id"] not in images:
                raise DataError(f"cannot use {where}: it is on image {each['image_id']!r}, which is not in 'images'")
            label = int(each["category_id"])
            if label not in categories:
                raise DataError(
                    f"cannot use {where}: its category is {label}; expected one of 'categories', "
                    f"{_few(sorted(categories))}"
                )
            if each.get("iscrowd"):
                continue
            x, y, width, height = map(float, each["bbox"])
            objects[each["image_id"]].append((where, [x, y, x + width, y + height], label))
        sizes = {number: (int(each["width"]), int(each["height"])) for number, each in images.items()}
        names = {number: str(each["file_name"]) for number, each in images.items()}
    except DataError:
        raise
    except OSError as error:
        raise DataError(f"cannot read '{file}': {first_line(error)}") from error
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DataError(
            f"cannot read '{file}': it is no file of COCO's annotations ({type(error).__name__}: {first_line(error)}); "
            "expected 'images', 'annotations' with a bbox of four numbers each, and 'categories'"
        ) from error
    if not categories or not images:
        raise DataError(
            f"cannot use '{file}': it names no {'images' if categories else 'categories'}; expected at least one"
        )
    found = _Found(folder, file)
    scenes = []
    for number, expected in sizes.items():
        image = found[names[number]]
        shown, stored = _sizes(image)
        if expected not in (shown, stored):
            raise DataError(
                f"cannot use '{file}': it has {expected[0]} columns and {expected[1]} rows for '{image}', whose are "
                f"{shown[0]} and {shown[1]}; expected the size that its boxes are drawn on"
            )
        scenes.append(_scene(image, objects[number], expected, form, is_turned=expected == shown))
    return scenes, categories


class _Found:
    """Image files by the names that annotations have for them: beside these, or anywhere below the folder."""

    def __init__(self, folder: Path, table: Path) -> None:
        self.folder, self.table = folder, table
        self.below: dict[str, list[Path]] | None = None

    def __getitem__(self, name: str) -> Path:
        for place in (self.table.parent, self.folder):
            if (place / name).is_file():
                return place / name
        if self.below is None:
            self.below = {}
            for each in images_below(self.folder):
                self.below.setdefault(each.name, []).append(each)
        parts = Path(name).parts
        parts = parts[-1:] if Path(name).is_absolute() else parts  # the folders of another machine say nothing
        found = [each for each in self.below.get(Path(name).name, []) if each.parts[-len(parts) :] == parts]
        # Two parts may number their images alike: instances_val2017.json is not about those in train2017/.
        found = [each for each in found if not self._is_of_other(each)]
        if len(found) != 1:
            several = f"{len(found)} files of that name are" if found else "no file of that name is"
            raise DataError(
                f"cannot find the image {name!r} that '{self.table}' lists: {several} below '{self.folder}'; expected "
                "one, or one in the place that the table says"
            )
        return found[0]

    def _is_of_other(self, file: Path) -> bool:
        folder = {word for part in file.relative_to(self.folder).parent.parts for word in _words(part)}
        table = _words(self.table.name) | _words(self.table.parent.name)
        return any(folder & set(words) and not table & set(words) for words in (TRAIN_NAMES, *TEST_NAMES))


# --- YOLO


def _yolo(folder: Path) -> tuple[list[Scene], list[Scene], dict[int, str]]:
    described = _described(folder)
    found = described.get("names")
    named = dict(enumerate(found)) if isinstance(found, list) else found
    if not isinstance(named, Mapping) or set(named) != set(range(len(named))) or not named:
        raise DataError(f"cannot use the YAML of 'yolo:{folder}': names is {found!r}; expected a name for each class")
    base = folder / str(described.get("path") or "")
    base = base if base.is_dir() else folder  # it may say where the data lay on another machine
    test = next((described[name] for words in TEST_NAMES for name in words if described.get(name)), None)
    if not described.get("train") or not test:
        raise DataError(
            f"cannot use the YAML of 'yolo:{folder}': it has {', '.join(map(str, described)) or 'nothing'}; expected "
            "train and val, folders of images"
        )
    parts = [
        [_yolo_scene(file, len(named), has_points="kpt_shape" in described) for file in _images_in(each, base, folder)]
        for each in (described["train"], test)
    ]
    return parts[0], parts[1], {number + 1: str(name) for number, name in named.items()}


def _described(folder: Path) -> dict[str, Any]:
    try:
        import yaml
    except ImportError as error:
        raise DataError(
            f"cannot load data 'yolo:{folder}': PyYAML is not installed; install it with "
            "`pip install 'transprune[detection]'`"
        ) from error
    files = [folder / "data.yaml"]
    if not files[0].is_file():
        files = sorted(each for each in folder.iterdir() if each.suffix in (".yaml", ".yml"))
    if len(files) != 1:
        raise DataError(
            f"cannot load data 'yolo:{folder}': it has {len(files)} YAML files; expected data.yaml, with train, val "
            "and names"
        )
    try:
        found = yaml.safe_load(_text(files[0]))
    except yaml.YAMLError as error:
        raise DataError(f"cannot read '{files[0]}': {first_line(error)}; expected YAML") from error
    if not isinstance(found, dict):
        raise DataError(f"cannot use '{files[0]}': it holds {type(found).__name__}; expected train, val and names")
    return found


def _images_in(part: Any, *bases: Path) -> list[Path]:
    """The images of a part: a folder, a file that lists images, or several of these."""
    files: list[Path] = []
    for name in part if isinstance(part, list) else [part]:
        ways = [base / str(name).removeprefix("../") for base in bases] + [base / str(name) for base in bases]
        place = next((each for each in ways if each.exists()), None)
        if place is None:
            raise DataError(f"cannot load the images of '{bases[-1]}': there is no {name!r}, which the YAML names")
        if place.is_dir():
            files += images_below(place)
        else:
            files += [place.parent / line.strip() for line in _text(place).splitlines() if line.strip()]
    if not files:
        raise DataError(f"cannot load the images of '{bases[-1]}': there are none in {part!r}, which the YAML names")
    return files


def _yolo_scene(file: Path, classes: int, *, has_points: bool) -> Scene:
    parts = list(file.parts)
    places = [place for place, part in enumerate(parts[:-1]) if part == "images"]
    if places:
        parts[places[-1]] = "labels"
    table = Path(*parts).with_suffix(".txt")
    (columns, rows), _ = _sizes(file)
    form = "centre x, centre y, width and height as shares of the image, from 0 to 1"
    objects = []
    for where, label, box in _lines(table, has_points=has_points):
        if not 0 <= label < classes:
            raise DataError(f"cannot use {where}: its class is {label}; expected a number from 0 to {classes - 1}")
        x, y, width, height = box
        if max(box) > 1 + SLACK / min(columns, rows):
            raise DataError(f"cannot use {where}: its box is {_few(box)}; expected {form}")
        edges = [x - width / 2, y - height / 2, x + width / 2, y + height / 2]
        sides = (columns, rows, columns, rows)
        objects.append((where, [edge * side for edge, side in zip(edges, sides, strict=True)], label + 1))
    return _scene(file, objects, (columns, rows), form)


def _lines(table: Path, *, has_points: bool) -> Iterator[tuple[str, int, list[float]]]:
    """Where each object of a table stands, its class and its box, also of outlines; key points are left out."""
    lines = _text(table).splitlines() if table.is_file() else []  # without a table nothing is on the image
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        where = f"line {number} of '{table}'"
        try:
            label, *figures = map(float, line.split())
            figures = figures[:4] if has_points else figures
            is_outline = len(figures) > 4 and len(figures) % 2 == 0
            if label != int(label) or (len(figures) != 4 and not is_outline):
                raise ValueError(line)
        except (ValueError, OverflowError) as error:
            raise DataError(
                f"cannot use {where}: it is {line.strip()[:60]!r}; expected a class and four numbers"
            ) from error
        if is_outline:
            x, y = figures[::2], figures[1::2]
            figures = [(min(x) + max(x)) / 2, (min(y) + max(y)) / 2, max(x) - min(x), max(y) - min(y)]
        yield where, int(label), figures


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8-sig")
    except (OSError, ValueError) as error:
        raise DataError(f"cannot read '{file}': {first_line(error)}; expected text in UTF-8") from error


def _few(values: Sequence[float]) -> str:
    return ", ".join(f"{each:.6g}" for each in values[:8]) + (", …" if len(values) > 8 else "")
