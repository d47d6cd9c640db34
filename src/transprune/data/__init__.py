"""Data sets of labelled images, their sources and batches, and data from loaders of your own.

Example:
    data = load_data("digits")
    weights_part, architecture_part = split_halves(data.train, seed=0)
    for images, labels in make_loader(weights_part, data, batch_size=64, train=True, seed=0, device="cpu"):
        ...
"""

from transprune.data.augmentation import Augmentation
from transprune.data.encoded_images import held, preprocessing, said_of_left_out
from transprune.data.image_batches import Loader, make_loader
from transprune.data.own_loaders import LoaderData, SearchLoaders, divide_loader, length_of, like, no_batches
from transprune.data.sources import load_data
from transprune.data.splits import FileSplit, ImageData, MemorySplit, Split, halves_of, split_halves

__all__ = [
    "Augmentation",
    "FileSplit",
    "ImageData",
    "Loader",
    "LoaderData",
    "MemorySplit",
    "SearchLoaders",
    "Split",
    "divide_loader",
    "halves_of",
    "held",
    "length_of",
    "like",
    "load_data",
    "make_loader",
    "no_batches",
    "preprocessing",
    "said_of_left_out",
    "split_halves",
]
