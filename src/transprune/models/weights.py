"""Loads trained weights from a file, without ever running code that the file holds.

A file is judged by what it holds, not by its ending. All tensors in it get one dotted name each, whatever they lie in:
`state_dict.module.conv1.weight`. What stands before the names of the model is a prefix then, be it the key of a
checkpoint or the name of a wrapper, and the prefix behind which the model is found is taken off.
"""

from __future__ import annotations

import os
import re
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor, nn

from transprune.errors import ModelError, first_line
from transprune.models.resnet import OUTSIDE_STAGES, ResNet, is_torchvision_resnet, pooled_shortcuts, renamed
from transprune.runtime.files import expanded
from transprune.runtime.structures import copied

COUNT = "num_batches_tracked"
"""The buffer in which a batch norm counts batches."""
WRAPPED = ("module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
"""What wrappers for data parallelism, compilation and memory put into the middle of a name."""
LEARNED = ("weight", "bias", "running_mean", "running_var")
"""Last parts of names without which a layer computes something else."""
MOST_ENTRIES = 300_000
"""Of a file with more entries than this, no network is made."""
DEEPEST = 30
"""So many containers lie in each other at most."""


@dataclass(frozen=True, kw_only=True)
class Weights:
    """The weights in a file that fit a model, and what does not fit."""

    tensors: dict[str, Tensor]
    """Tensors that fit the model in name, shape and type."""
    filled: tuple[str, ...] = ()
    """Names of those that are the model's own: batch counts, which old files do not have."""
    missing: tuple[str, ...] = ()
    """Names in the model but not in the file."""
    unexpected: tuple[str, ...] = ()
    """Names of layers and parts of layers in the file that the model does not have, and that compute something."""
    left_out: tuple[str, ...] = ()
    """Names in the file of what does not belong to the network, such as an optimizer or a count of operations."""
    reshaped: tuple[str, ...] = ()
    """Names whose shape or type differs, with both; all floating-point types of two bytes and more fit each other."""
    misplaced: tuple[str, ...] = ()
    """Names of layers that compute something else here than where they were trained."""

    @property
    def given(self) -> int:
        """How many tensors are the file's."""
        return len(self.tensors) - len(self.filled)

    @property
    def beside(self) -> str:
        """What of the file was left out, in words; empty if nothing was."""
        return f"; left out, since it is no part of the network: {_first(self.left_out, 8)}" if self.left_out else ""

    @property
    def is_whole(self) -> bool:
        """Whether the model gets all of its weights."""
        return not self.missing and not self.reshaped and not self.misplaced

    def put_into(self, model: nn.Module) -> nn.Module:
        """A copy of the model with these weights, as far as they fit."""
        found = copied(model)
        found.load_state_dict(self.tensors, strict=False)
        return found

    @property
    def misfit(self) -> str:
        """Says what does not fit, with the first few names; empty if everything fits."""
        kinds = (
            ("missing", self.missing),
            ("unexpected", self.unexpected),
            ("of another shape or type", self.reshaped),
            ("trained with a stride where this network pools (its -strided twin does not)", self.misplaced),
        )
        return "; ".join(f"{len(names)} {kind}: {_first(names)}" for kind, names in kinds if names)


def load_weights(path: str | Path, model: nn.Module, *, partial: bool = False) -> Weights:
    """Reads the weights of a model from a file of safetensors or torch, as tensors only.

    Args:
        path: The file: a state dict, or anything that holds one. `FILE:KEY` names which of several.
        model: The model that the weights are for; untouched.
        partial: Return the weights that fit and the names of the others; otherwise, any misfit is an error.

    Raises:
        ModelError: The file is missing, of another kind, damaged, holds more than tensors, or does not fit the model.
    """
    tensors, source = read_tensors(path)
    return fit_weights(tensors, model, source=source, partial=partial)


def read_tensors(path: str | Path) -> tuple[dict[str, Tensor], Path]:
    """The tensors of a file by their dotted names, and the file; arguments and errors as for `load_weights`."""
    file, key = _file_and_key(path)
    return _read_whole(file, key), file


def fit_weights(tensors: dict[str, Tensor], model: nn.Module, *, source: Path, partial: bool = False) -> Weights:
    """The weights of a model among tensors by their dotted names; arguments and errors as for `load_weights`.

    Args:
        tensors: What a file holds, or a library publishes.
        model: As there.
        source: Where they are from, for messages.
        partial: As there.
    """
    file, weights = source, _fit(source, tensors, model)
    expected, learned = model.state_dict(), {name for name, _ in model.named_parameters()}
    spoilt = tuple(
        name
        for name, value in weights.tensors.items()
        if (name in learned or name.rpartition(".")[2] in LEARNED)  # another buffer may hold a mask of infinities
        and not value.to(expected[name].dtype).isfinite().all()
    )
    if spoilt:
        raise ModelError(
            f"cannot use the weights in '{file}': numbers that are not finite are in {_first(spoilt)}; expected those "
            "of a network that was trained to its end"
        )
    if not weights.given:
        raise ModelError(
            f"cannot load weights from '{file}': nothing in it fits the model; {weights.misfit}{weights.beside}; "
            "expected a state dict of this network, a map from names to tensors"
        )
    if weights.misfit and not partial:
        raise ModelError(
            f"cannot load weights from '{file}': they do not fit the model; {weights.misfit}; "
            f"to take what fits, use --weights-partial"
        )
    return weights


PROBE = 7919
"""A number of classes that no axis of a network is as long as for another reason."""


def classes_in(tensors: dict[str, Tensor], build: Callable[[int], nn.Module], *, source: Path) -> int | None:
    """How many classes weights tell apart; None: they do not fit, or the network does not ask.

    Args:
        tensors: As for `fit_weights`.
        build: Makes the network for so many classes.
        source: As for `fit_weights`.
    """
    probe = build(PROBE)
    found = _named(source, tensors, probe).tensors
    outputs = [name for name, tensor in probe.state_dict().items() if tensor.shape[:1] == (PROBE,) and name in found]
    counts = {found[name].shape[0] for name in outputs if found[name].dim()}
    return counts.pop() if len(counts) == 1 else None


# --- from a file to named tensors


def _file_and_key(path: str | Path) -> tuple[Path, str]:
    """The file, and behind a colon the key of what is wanted of it; a file whose name has a colon is one too."""
    file = expanded(os.fspath(path))
    place, colon, key = os.fspath(file).rpartition(":")
    if colon and not os.path.isfile(file) and os.path.isfile(place):
        return Path(place), key
    return file, ""


def _read_whole(file: Path, key: str) -> dict[str, Tensor]:
    """The tensors of a file by their dotted names, those under a key if it is named; a message where there are none."""
    if not os.path.isfile(file):
        found_there = "it is a folder: name a file in it" if os.path.isdir(file) else "there is no such file"
        raise ModelError(f"cannot load weights from '{file}': {found_there}")
    try:
        content = _read(file)
        found = dict(_flat(content))
    except Exception as error:  # a damaged file may raise anything in a reader
        raise ModelError(
            f"cannot load weights from '{file}': {_problem(file, error)}; expected tensors only, as "
            "`safetensors.torch.save_file` or `torch.save(model.state_dict(), file)` writes them"
        ) from error
    if not found or isinstance(content, Tensor):
        what = "no tensor" if not found else f"a single tensor {list(content.shape)} without a name"
        raise ModelError(
            f"cannot load weights from '{file}': there is {what} in it; expected a state dict, a map from names to "
            "tensors, or a checkpoint that holds one"
        )
    under = {name.removeprefix(f"{key}."): value for name, value in found.items() if name.startswith(f"{key}.")}
    if key and not under:
        keys = tuple(dict.fromkeys(name.partition(".")[0] for name in found))
        raise ModelError(
            f"cannot load weights from '{file}': it has nothing under the key {key!r}; it has {_first(keys, 8)}"
        )
    return under if key else found


def _read(file: Path) -> Any:
    """What a file holds; only tensors and plain values are made of it."""
    with file.open("rb") as opened:  # readers in other languages do not open every path
        if opened.read(9)[8:] == b"{":
            from safetensors.torch import load

            return load(file.read_bytes())
        _check_stored(opened)
        opened.seek(0)
        return torch.load(opened, map_location="cpu", weights_only=True)


def _check_stored(opened: BinaryIO) -> None:
    """Checks that an archive unpacks to its own size, before anything is held in memory.

    Raises:
        ValueError: It is a program, or parts of it are compressed, which torch never does.
    """
    if zipfile.is_zipfile(opened):  # files from before torch 1.6 are no archives
        with zipfile.ZipFile(opened) as archive:
            if any("/code/" in name for name in archive.namelist()):
                raise ValueError("it is a TorchScript archive (save `torch.jit.load(file).state_dict()`)")
            if any(part.compress_type != zipfile.ZIP_STORED for part in archive.infolist()):
                raise ValueError("it is a compressed archive")


def _flat(content: Any) -> Iterator[tuple[str, Tensor]]:
    """The tensors of a value with their dotted names, whatever they lie in.

    Raises:
        ValueError: There is no end of them.
    """
    waiting: list[tuple[tuple[Any, ...], Any]] = [((), content)]
    for _ in range(MOST_ENTRIES):
        if not waiting:
            return
        path, value = waiting.pop()
        if isinstance(value, Tensor):
            yield ".".join(map(str, path)), value.detach()
        elif isinstance(value, Mapping | list | tuple):
            if len(path) == DEEPEST:
                break
            items = list(value.items() if isinstance(value, Mapping) else enumerate(value))
            waiting.extend(((*path, key), item) for key, item in reversed(items))
    raise ValueError(f"it has more than {MOST_ENTRIES:,} entries, or holds itself")


OTHER_KINDS = (
    (b"version https://git-lfs", "it is a pointer of Git LFS, not the file itself (`git lfs pull` fetches that)"),
    (b"<", "it is a page of HTML or XML, not the file itself: download that"),
    (b"\x89HDF", "it is a file of HDF5, as Keras writes them"),
    (b"\x1f\x8b", "it is compressed by gzip: unpack it"),
    (b"\x93NUMPY", "it is an array of numpy"),
)
"""How files begin that are often taken for weights, and what they are."""


def _problem(file: Path, error: Exception) -> str:
    """What is wrong with a file, in words, from its beginning and from what a reader raised."""
    try:
        with file.open("rb") as opened:
            begun = opened.read(64)
    except OSError as unreadable:
        return f"it cannot be read ({unreadable.strerror})"
    known = next((what for begin, what in OTHER_KINDS if begun.lstrip().startswith(begin)), None)
    is_of_weights = begun.startswith((b"PK", b"\x80")) or begun[8:9] == b"{"
    return known or (_refused(file, error) if is_of_weights else _no_weights(begun))


def _no_weights(begun: bytes) -> str:
    """What a file is that begins as no file of weights does."""
    if not begun:
        return "it is empty"
    words = begun.decode("utf-8", "replace").split()
    if not words or not all(map(str.isprintable, words)) or "\ufffd" in words[0]:
        return "it is no file of torch or safetensors"
    return f"it is text, which begins {' '.join(words)[:40]!r}"


def _refused(file: Path, error: Exception) -> str:
    """Why a reader refuses a file that begins as one of weights does."""
    text = str(error)
    if text.startswith("it "):
        return text
    if "Weights only load failed" in text:  # torch's message goes on to say how to run the code anyway
        objects = _objects(file, text)
        if objects:
            return (
                f"it holds more than tensors: objects of {_first(objects)}, whose code would run; where the file is "
                "trusted, `torch.load(file, weights_only=False)` gives what it holds: save the state dict of that alone"
            )
        return "it holds more than tensors, or is no file of torch"
    if zipfile.is_zipfile(file):
        return "it is an archive, but none that torch wrote"
    return f"it is cut off or damaged: fetch or save it again ({first_line(error)})"


def _objects(file: Path, text: str) -> tuple[str, ...]:
    """Classes and functions that a file asks for and that are no tensors, without running any."""
    try:
        with file.open("rb") as opened:
            found = torch.serialization.get_unsafe_globals_in_checkpoint(opened)
    except Exception:  # files of an old format, and damaged ones
        found = re.findall(r"GLOBAL (\S+) was not", text) + re.findall(r"class (\S+) ", text)
    return tuple(dict.fromkeys(sorted(found)))


# --- from named tensors to a model


@dataclass(frozen=True, kw_only=True)
class _Named:
    """The tensors of a file that are named as a model's are, and the rest."""

    prefix: str
    tensors: dict[str, Tensor]
    """Under the names of the model; others among them are behind the same prefix."""
    outside: tuple[str, ...]
    """What else the file holds, where it parts from the prefix."""
    misplaced: tuple[str, ...] = ()

    def fits(self, expected: Mapping[str, Tensor]) -> tuple[bool, int, int]:
        """How well: whether all is there with its shape, how many have their shapes, how many are there."""
        there = [name for name in expected if name in self.tensors]
        alike = sum(self.tensors[name].shape == expected[name].shape for name in there)
        wanted = sum(not name.endswith(COUNT) or name in self.tensors for name in expected)
        return alike == wanted, alike, len(there)


def _fit(file: Path, found: dict[str, Tensor], model: nn.Module) -> Weights:
    named, expected = _named(file, found, model), model.state_dict()
    counts = {} if not named.tensors.keys() & expected.keys() else _counts(named.tensors, expected)
    tensors = {**counts, **named.tensors}
    known = [name for name in expected if name in tensors]
    misfits = {name: _misfit(tensors[name], expected[name]) for name in known}
    others = [name for name in named.tensors if name not in expected]
    unexpected = [name for name in others if _is_of(name, named.tensors[name], expected)]
    return Weights(
        tensors={name: _counting(tensors[name], expected[name]) for name in known if not misfits[name]},
        filled=tuple(counts),
        missing=tuple(name for name in expected if name not in tensors),
        unexpected=tuple(unexpected),
        left_out=(*(name for name in others if name not in unexpected), *named.outside),
        reshaped=tuple(f"{name} {misfit}" for name, misfit in misfits.items() if misfit),
        misplaced=named.misplaced,
    )


def _named(file: Path, found: dict[str, Tensor], model: nn.Module) -> _Named:
    """The weights under the names that a model has for them.

    Raises:
        ModelError: Several parts of the file fit equally well.
    """
    expected = model.state_dict()
    best = _best(file, found, model, expected)
    if best.fits(expected)[0]:
        return best
    middle = [part for part in WRAPPED if not any(part in name.split(".") for name in expected)]
    plain = {_without(name, middle): value for name, value in found.items()}
    if len(plain) < len(found):  # two names would be one
        return best
    return max(best, _best(file, plain, model, expected), key=lambda each: each.fits(expected))


def _without(name: str, parts: list[str]) -> str:
    return ".".join(part for part in name.split(".") if part not in parts)


def _best(file: Path, found: dict[str, Tensor], model: nn.Module, expected: Mapping[str, Tensor]) -> _Named:
    """What is behind the prefix that fits best."""
    candidates = list(_candidates(found, model, expected))
    whole = next((each for each in candidates if not each.prefix and each.fits(expected)[0]), None)
    if whole is not None:
        return whole  # the names fit as they are
    most = max(each.fits(expected) for each in candidates)
    best = [each for each in candidates if each.fits(expected) == most]
    if len(best) == 1 or not most[-1] or _are_equal(best, expected):
        return best[0]
    keys = tuple(each.prefix.rstrip(".") or "the top level" for each in best)
    raise ModelError(
        f"cannot load weights from '{file}': {len(keys)} parts of it fit the model, under {_first(keys, 8)}; expected "
        f"one, or its key behind a colon (--weights '{file}:{keys[-1]}')"
    )


def _candidates(found: dict[str, Tensor], model: nn.Module, expected: Mapping[str, Tensor]) -> Iterator[_Named]:
    """What may be meant: the tensors behind each prefix that stands before a name of the model."""
    is_ours = isinstance(model, ResNet)
    wanted = set(expected) | ({f"{layer}.weight" for layer in OUTSIDE_STAGES} if is_ours else set())
    prefixes = {"": None}
    for name in found:
        parts = name.split(".")
        for start in range(1, len(parts)):
            if ".".join(parts[start:]) in wanted:
                prefixes[".".join(parts[:start]) + "."] = None
    for prefix in prefixes:
        inside = {name.removeprefix(prefix): value for name, value in found.items() if name.startswith(prefix)}
        outside = tuple(dict.fromkeys(_parting(name, prefix) for name in found if not name.startswith(prefix)))
        misplaced: tuple[str, ...] = ()
        if isinstance(model, ResNet) and is_torchvision_resnet(inside):
            misplaced = pooled_shortcuts(model)
            inside = renamed(inside, halved_by="pool" if misplaced else "stride")
        yield _Named(prefix=prefix, tensors=inside, outside=outside, misplaced=misplaced)


def _parting(name: str, prefix: str) -> str:
    """A dotted name as far as it takes to tell it from a prefix."""
    parts, others = name.split("."), prefix.split(".")
    apart = (place for place, part in enumerate(parts) if place >= len(others) or part != others[place])
    common = next(apart, len(parts))  # the prefix may begin with the whole name
    return ".".join(parts[: common + 1])


def _are_equal(found: list[_Named], expected: Mapping[str, Tensor]) -> bool:
    """Whether it does not matter which one is taken."""
    first, *others = ({name: each.tensors[name] for name in expected if name in each.tensors} for each in found)
    return all(
        first.keys() == other.keys()
        and all(value is other[name] or torch.equal(value, other[name]) for name, value in first.items())
        for other in others
    )


def _is_of(name: str, value: Tensor, expected: Mapping[str, Tensor]) -> bool:
    """Whether a tensor that a model does not have is a layer's that stands where the model has its own.

    The weights of a larger network have all that a smaller one wants, and more; a criterion or a second head stands
    beside the network, and counts of operations are no weights.
    """
    parents = {each.partition(".")[0] for each in expected}
    first, _, rest = name.partition(".")
    is_inside = bool(rest) and (first in parents or (first.isdecimal() and any(map(str.isdecimal, parents))))
    return (is_inside or name in LEARNED) and name.rpartition(".")[2] in LEARNED and value.is_floating_point()


def _counts(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The model's own batch counts, where a file has the statistics of a norm alone.

    So do files from before torch 0.4.1, many of torchvision's among them; torch fills in the counts likewise.
    """
    return {
        name: value.clone()
        for name, value in expected.items()
        if name.endswith(COUNT) and name not in found and f"{name.removesuffix(COUNT)}running_mean" in found
    }


def _misfit(found: Tensor, expected: Tensor) -> str:
    """Why a tensor cannot replace another; empty if it can."""
    if found.shape != expected.shape:
        return f"has shape {list(found.shape)}, expected {list(expected.shape)}"
    if found.is_meta:
        return "has no values (it is on the meta device)"
    found = _counting(found, expected)
    is_rounded = found.is_floating_point() and found.itemsize == 1  # the scales that belong to it lie elsewhere
    are_floats = found.is_floating_point() and expected.is_floating_point()
    if found.dtype != expected.dtype and (is_rounded or not are_floats):
        return f"has type {found.dtype}, expected {expected.dtype}"
    if found.layout != torch.strided:
        return f"is {found.layout}, expected {torch.strided}"
    return ""


def _counting(found: Tensor, expected: Tensor) -> Tensor:
    """A tensor as whole numbers where such are expected: a count of batches may be cast with all weights."""
    is_count = (
        expected.dtype in (torch.int64, torch.int32) and found.is_floating_point() and found.layout == torch.strided
    )
    return (
        found.to(expected.dtype)
        if is_count and bool((found == found.trunc()).all() & found.isfinite().all())
        else found
    )


def _first(names: tuple[str, ...], most: int = 3) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
