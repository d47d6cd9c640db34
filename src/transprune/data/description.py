"""How the images of a data set become the input of a network, for whoever uses the network elsewhere."""

from __future__ import annotations

from typing import Any

from transprune.data.encoded_images import is_shown_whole
from transprune.data.splits import FileSplit, ImageData


def preprocessing(data: ImageData) -> dict[str, Any]:
    """What `architecture.json` says of the images: the way to the input in words, its figures, and what comes out.

    Args:
        data: What the network learns from.
    """
    return {
        "how": _how(data),
        "mean": list(data.mean),
        "std": list(data.std),
        "classes": list(data.classes),
    }


def _how(data: ImageData) -> str:
    channels, height, width = data.image_size
    size = f"{height} x {width} (rows x columns)"
    is_whole = not isinstance(data.test, FileSplit) or is_shown_whole(data.image_size)
    box = "the whole image" if is_whole else f"the largest central box of the shape {size}, its sides cut to 7/8,"
    kind = "RGB" if channels == 3 else "grey" if channels == 1 else f"{channels} channels"
    return (
        f"{box} is resized to {size} bilinearly, with antialiasing, as {kind}; pixels from 0 to 1, less mean and "
        "divided by std, channel by channel: [batch, channels, rows, columns]"
    )


def said_of_left_out(data: ImageData) -> str:
    """How many files were left out, and of which endings, in words; empty if there are none."""
    if not data.left_out:
        return ""
    count = sum(data.left_out.values())
    endings = ", ".join(f"{many:,} {ending or 'without an ending'}" for ending, many in data.left_out.items())
    return f"{count:,} {'file is' if count == 1 else 'files are'} no image by the ending ({endings})"
