"""Named tensors, and trees of tensors and plain values, as safetensors files: equal tensors give equal bytes.

The structure of a tree is JSON in the metadata of the file.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors import torch as safetensors_torch
from torch import Tensor

from transprune.runtime.files import BLANK, KEY, is_whole, seal


def encode_tensors(tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> bytes:
    """The content of a safetensors file, with its own checksum in the metadata.

    Tensors may be on any device, be views, or share memory; each is written separately and in full.
    """
    separate = {
        name: tensor.detach().to("cpu").clone(memory_format=torch.contiguous_format) for name, tensor in tensors.items()
    }
    return seal(_with_sorted_metadata(safetensors_torch.save(separate, {**(metadata or {}), KEY: BLANK})))


def decode_tensors(content: bytes, *, needs_checksum: bool = False) -> dict[str, Tensor]:
    """The tensors of a safetensors file, on the CPU.

    Args:
        content: The content of the file.
        needs_checksum: Reject files without a checksum, which other writers than `encode_tensors` make.

    Raises:
        ValueError: The content is damaged or not a safetensors file.
    """
    whole = is_whole(content)
    if whole is False or (needs_checksum and whole is None):
        raise ValueError("its checksum does not fit")
    try:
        return safetensors_torch.load(content)
    except SafetensorError as error:
        raise ValueError(str(error)) from error


def read_metadata(content: bytes) -> dict[str, str]:
    """The metadata of a safetensors file that `encode_tensors` wrote."""
    metadata: dict[str, str] = _header(content)[0]["__metadata__"]
    return metadata


def _header(content: bytes) -> tuple[dict[str, Any], int]:
    """The header and its end. A file is the header's length (8 bytes), the header (JSON, padded), and the tensors."""
    end = 8 + int.from_bytes(content[:8], "little")
    return json.loads(content[8:end]), end


def _with_sorted_metadata(content: bytes) -> bytes:
    """The same file with its metadata in alphabetical order.

    The library's order of metadata differs between processes, but equal runs must write equal files.
    """
    header, end = _header(content)
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + content[end:]


def encode_tree(tree: Any) -> bytes:
    """Encodes a tree of dicts, lists, tuples, tensors, texts, numbers, booleans and None.

    Raises:
        TypeError: The tree contains something else.
    """
    tensors: dict[str, Tensor] = {}
    shape = json.dumps(_described(tree, tensors), separators=(",", ":"))
    return encode_tensors(tensors, {"tree": shape})


def decode_tree(content: bytes) -> Any:
    """Decodes what `encode_tree` returned, with tensors on the CPU.

    Raises:
        ValueError: The content is damaged or something else.
    """
    tensors = decode_tensors(content, needs_checksum=True)
    return _rebuilt(json.loads(read_metadata(content)["tree"]), tensors)


def _described(value: Any, tensors: dict[str, Tensor]) -> Any:
    """The tree as JSON: dicts as pairs, since keys may be numbers; tensors by name, and added to `tensors`."""
    if isinstance(value, Tensor):
        name = str(len(tensors))
        tensors[name] = value
        return {"tensor": name}
    if isinstance(value, Mapping):
        return {"map": [[_described(part, tensors) for part in pair] for pair in value.items()]}
    if isinstance(value, tuple):
        return {"tuple": [_described(item, tensors) for item in value]}
    if isinstance(value, list):
        return [_described(item, tensors) for item in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"a {type(value).__name__} is neither a tensor nor a plain value")


def _rebuilt(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    if isinstance(value, list):
        return [_rebuilt(item, tensors) for item in value]
    if not isinstance(value, dict):
        return value
    ((kind, content),) = value.items()
    if kind == "tensor":
        return tensors[content]
    items = [_rebuilt(item, tensors) for item in content]
    return tuple(items) if kind == "tuple" else dict(items)
