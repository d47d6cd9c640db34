"""Folders of images with boxes, in the forms of COCO and of YOLO."""

import json
from pathlib import Path

from PIL import Image, ImageDraw

BOX = (8, 4, 24, 16)
"""Left, upper, right and lower edges of the square on each image."""
COLUMNS, ROWS = 48, 32
DESCRIBED = "path: /elsewhere\ntrain: images/train\nval: images/val\nnames: [a, b]\n"


def draw(file: Path, colour: tuple[int, int, int] = (255, 0, 0)) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    image = Image.new("RGB", (COLUMNS, ROWS), (20, 20, 20))
    ImageDraw.Draw(image).rectangle((BOX[0], BOX[1], BOX[2] - 1, BOX[3] - 1), colour)
    image.save(file)


def write_coco(folder: Path, count: int = 4, first: int = 1, **changes) -> Path:
    """Two classes, an object on each image; `changes` are made to the first annotation of the training part."""
    left, upper, right, lower = BOX
    for part in ("train", "val"):
        images, annotations = [], []
        for number in range(count):
            draw(folder / part / f"{number}.png")
            images.append({"id": number, "file_name": f"{number}.png", "width": COLUMNS, "height": ROWS})
            box = [left, upper, right - left, lower - upper]
            annotations.append({"id": number, "image_id": number, "category_id": first + number % 2, "bbox": box})
        if part == "train":
            annotations[0] |= changes
        names = [{"id": first + place, "name": name} for place, name in enumerate("ab")]
        record = {"images": images, "annotations": annotations, "categories": names}
        file = folder / "annotations" / f"instances_{part}2017.json"
        file.parent.mkdir(exist_ok=True)
        file.write_text(json.dumps(record))
    return folder


def write_yolo(folder: Path, count: int = 4, line: str = "", described: str = "") -> Path:
    """The same as `write_coco`; `line` is the first of the first training image."""
    left, upper, right, lower = BOX
    box = ((left + right) / 2 / COLUMNS, (upper + lower) / 2 / ROWS, (right - left) / COLUMNS, (lower - upper) / ROWS)
    for part in ("train", "val"):
        for number in range(count):
            draw(folder / "images" / part / f"{number}.png")
            table = folder / "labels" / part / f"{number}.txt"
            table.parent.mkdir(parents=True, exist_ok=True)
            table.write_text(f"{number % 2} {' '.join(map(str, box))}\n")
    if line:
        (folder / "labels" / "train" / "0.txt").write_text(line)
    (folder / "data.yaml").write_text(
        described or "path: /elsewhere\ntrain: images/train\nval: images/val\nnames: [a, b]\n"
    )
    return folder
