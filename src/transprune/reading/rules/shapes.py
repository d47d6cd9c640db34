"""Rules of operators that move entries around: views, permutations, slices and concatenations."""

from __future__ import annotations

from math import prod
from typing import Any

import torch
from torch import Tensor

from transprune.reading.axes import Axis, concatenate, is_fixed, multiply, settle
from transprune.reading.coupling import Arguments, Axes, Call, OperatorRule, origin_of
from transprune.reading.rules.pointwise import fixed_axes
from transprune.reading.trace import BOXED
from transprune.reading.unification import factor, split, unify_products


def reshape(call: Call) -> Axes:
    """Views the same entries in the same order as other axes."""
    before = call.axes("self") or call.tensors()[0]
    after = [Axis(size) for size in call.shape]
    if prod(axis.size for axis in before) == 0:
        return [call.fixed(size) for size in call.shape]
    unify_products(before, after, f"its uses do not fit together in {call.where}")
    after = [settle(axis) for axis in after]
    call.rewrite(size=after)
    return after


def run_reshape(arguments: Arguments) -> Any:
    """Reshapes, for all forms of `view`, whose size arguments differ."""
    tensor: Tensor = arguments["self"]
    return tensor.reshape(arguments["size"])


def permute(call: Call) -> Axes:
    """Reorders axes."""
    axes = call.axes("self") or []
    return [axes[int(dim) % len(axes)] for dim in call["dims"]]


def transpose(call: Call) -> Axes:
    """Exchanges two axes."""
    axes = list(call.axes("self") or [])
    named = [name for name in ("dim0", "dim1", "axis0", "axis1") if name in call.arguments]
    first, second = (int(call[name]) % max(1, len(axes)) for name in named) if named else (0, 1)
    if len(axes) > 1:
        axes[first], axes[second] = axes[second], axes[first]
    return axes


def reversed_axes(call: Call) -> Axes:
    """Puts the axes into the opposite order."""
    return list(reversed(call.axes("self") or []))


def transposed_matrices(call: Call) -> Axes:
    """Exchanges the last two axes."""
    *before, rows, columns = call.axes("self") or []
    return [*before, columns, rows]


def movedim(call: Call) -> Axes:
    """Moves axes to other positions."""
    axes = call.axes("self") or []
    pair = (call["source"], call["destination"])
    sources, targets = ([int(dim) % len(axes) for dim in (dims if isinstance(dims, list) else [dims])] for dims in pair)
    rest = iter(axis for place, axis in enumerate(axes) if place not in sources)
    moved = dict(zip(targets, sources, strict=True))
    return [axes[moved[place]] if place in moved else next(rest) for place in range(len(axes))]


def unsqueeze(call: Call) -> Axes:
    """Adds an axis of one entry."""
    axes = list(call.axes("self") or [])
    axes.insert(int(call["dim"]) % (len(axes) + 1), call.fixed(1))
    return axes


def squeeze(call: Call) -> Axes:
    """Removes axes of one entry."""
    axes = call.axes("self") or []
    dims = call["dim"]
    if dims is None:
        chosen = set(range(len(axes)))
    else:
        chosen = {int(dim) % len(axes) for dim in (dims if isinstance(dims, list | tuple) else [dims])}
    return [axis for place, axis in enumerate(axes) if not (place in chosen and axis.size == 1)]


def expand(call: Call) -> Axes:
    """Broadcasts axes of one entry."""
    axes = call.axes("self") or []
    sizes = call.shape
    new = len(sizes) - len(axes)
    result = [
        axes[place - new] if place >= new and axes[place - new].size == size else call.new_axis(place, size)
        for place, size in enumerate(sizes)
    ]
    call.rewrite(size=list(result))
    return result


def run_expand(arguments: Arguments) -> Any:
    """Expands to given sizes, also for `expand_as`."""
    tensor: Tensor = arguments["self"]
    return tensor.expand(arguments["size"])


def repeat(call: Call) -> Axes:
    """Repeats the tensor along each axis."""
    axes = call.axes("self") or []
    counts = [int(count) for count in call["repeats"] or call["dims"]]
    axes = [*(call.fixed(1) for _ in range(len(counts) - len(axes))), *axes]
    counts = [*(1 for _ in range(len(axes) - len(counts))), *counts]
    batch = call.coupling.trace.batch  # of each sample a copy of a table, such as one with an entry for each head
    times = [
        call.new_axis(place, count) if axis.size == 1 or (place == 0 and count == batch) else call.fixed(count)
        for place, (count, axis) in enumerate(zip(counts, axes, strict=True))
    ]
    call.rewrite(**{"repeats" if "repeats" in call.arguments else "dims": list(times)})
    return [multiply([time, axis]) for time, axis in zip(times, axes, strict=True)]


def repeat_interleave(call: Call) -> Any:
    """Repeats every entry in place."""
    axes = list(call.axes("self") or [])
    dim, count = call["dim"], call["repeats"]
    if dim is None or not isinstance(count, int):
        return fixed_result(call)
    place = int(dim) % len(axes)
    times = call.new_axis(place, count) if axes[place].size == 1 else Axis(count)
    axes[place] = multiply([axes[place], times])
    call.rewrite(repeats=times, **({} if call["output_size"] is None else {"output_size": axes[place]}))
    return axes


def fixed_result(call: Call) -> Any:
    """Fixes all that a call reads and returns, for cases that no rule covers."""
    for axes in call.tensors():
        for axis in axes:
            call.fix(axis)
    return fixed_axes(call, call.node.meta.get("val"))


def cat(call: Call) -> Axes:
    """Joins tensors along an axis."""
    tensors = [call.coupling.axes(call.node, source) for source in call["tensors"]]
    tensors = [axes for axes in tensors if len(axes) == len(call.shape)]  # torch accepts an empty vector
    place = int(call["dim"] or 0) % len(call.shape)
    result = list(tensors[0])
    for axes in tensors[1:]:
        for position, axis in enumerate(axes):
            if position != place:
                call.unify(result[position], axis)
    result[place] = concatenate([axes[place] for axes in tensors])
    return result


def stack(call: Call) -> Axes:
    """Joins tensors along a new axis."""
    tensors = [call.coupling.axes(call.node, source) for source in call["tensors"]]
    result = list(tensors[0])
    for axes in tensors[1:]:
        for one, other in zip(result, axes, strict=True):
            call.unify(one, other)
    result.insert(int(call["dim"] or 0) % (len(result) + 1), call.fixed(len(tensors)))
    return result


def split_up(call: Call) -> list[Axes]:
    """Splits a tensor along an axis. Pieces that the model asks to be equal stay equal."""
    axes = call.axes("self") or []
    place = int(call["dim"] or 0) % len(axes)
    sizes = [int(value.shape[place]) for value in call.node.meta["val"]]
    parts = split(axes[place], sizes, f"its uses do not fit together in {call.where}")
    if len(set(sizes)) == 1 and not isinstance(call["split_sizes"], list):
        for part in parts[1:]:
            call.unify(parts[0], part)
    call.rewrite(split_sizes=list(parts))
    return [[*axes[:place], part, *axes[place + 1 :]] for part in parts]


def run_split(arguments: Arguments) -> Any:
    """Splits into pieces of any sizes, also for `chunk` and the like."""
    return torch.split(arguments["self"], arguments["split_sizes"], arguments["dim"] or 0)


def unbind(call: Call) -> list[Axes]:
    """Takes a tensor apart into slices of one entry along an axis."""
    axes = call.axes("self") or []
    place = int(call["dim"] or 0) % len(axes)
    call.fix(axes[place], "takes it apart entry by entry")
    rest = [*axes[:place], *axes[place + 1 :]]
    return [rest for _ in range(axes[place].size)]


def select(call: Call) -> Axes:
    """Takes one entry along an axis."""
    axes = call.axes("self") or []
    place = int(call["dim"]) % len(axes)
    call.fix(axes[place], "reads one entry of it")
    return [*axes[:place], *axes[place + 1 :]]


def cut(call: Call) -> Axes:
    """Takes a slice along an axis."""
    axes = call.axes("self") or []
    place = int(call["dim"] or 0) % len(axes)
    axis = settle(axes[place])
    length = call.shape[place]
    if "length" in call.arguments:
        start, step = int(call["start"]) % max(1, axis.size), 1
    else:
        start = _clamped(call["start"] or 0, axis.size)
        step = int(call["step"] or 1)
    if length == axis.size and step == 1:
        call.rewrite(**({"length": axis} if "length" in call.arguments else {}))
        return axes
    if step != 1:
        call.fix(axis, "reads it in steps")
        return [*axes[:place], call.fixed(length), *axes[place + 1 :]]
    is_kept = call.coupling.trace.state(origin_of(call["self"])) is not None  # in a parameter, buffer or constant
    if is_kept and start == 0 and length == call.coupling.trace.batch:
        call.fix(axis, "reads as many of it as there are samples")
        samples = call.new_axis(place, length)
        call.rewrite(**{"length" if "length" in call.arguments else "end": samples})
        return [*axes[:place], samples, *axes[place + 1 :]]
    sizes = [start, length, axis.size - start - length]
    before, kept, _ = split(axis, sizes, f"its uses do not fit together in {call.where}")
    if "length" in call.arguments:
        call.rewrite(start=before, length=kept)
    else:
        call.rewrite(start=before, end=concatenate([before, kept]))
    return [*axes[:place], kept, *axes[place + 1 :]]


def _clamped(position: object, size: int) -> int:
    place = int(position) if isinstance(position, int) else 0
    return min(max(place + size if place < 0 else place, 0), size)


def pad(call: Call) -> Axes:
    """Adds entries at the ends of axes."""
    axes = list(call.axes("self") or [])
    amounts = [int(amount) for amount in call["pad"] or call["padding"]]
    is_constant = call["mode"] in (None, "constant") and "padding" not in call.arguments
    for offset in range(len(amounts) // 2):
        before, after = amounts[2 * offset : 2 * offset + 2]
        place = len(axes) - 1 - offset
        if (before, after) == (0, 0):
            continue
        if is_fixed(axes[place]) or not is_constant or before < 0 or after < 0:
            call.fix(axes[place])
            axes[place] = call.fixed(call.shape[place])
        else:
            axes[place] = concatenate([call.fixed(before), axes[place], call.fixed(after)])
    return axes


def moved_along(call: Call) -> Axes:
    """Moves entries along axes."""
    axes = call.axes("self") or []
    dims = call["dims"]
    for dim in dims if dims else range(len(axes)):
        call.fix(axes[int(dim) % len(axes)], "moves its entries")
    return axes


def ordered(call: Call) -> Any:
    """Reads entries along an axis in order."""
    axes = call.axes("self") or []
    for dim in [call["dim"]] if call["dim"] is not None else range(len(axes)):
        call.fix(axes[int(dim) % len(axes)], "reads it in order")
    return axes if isinstance(call.node.meta.get("val"), Tensor) else [axes for _ in call.node.meta["val"]]


def pixel_shuffle(call: Call) -> Axes:
    """Spreads channels over rows and columns."""
    *before, channels, rows, columns = call.axes("self") or []
    scale = int(call["upscale_factor"])
    kept, *spread = factor(channels, (channels.size // scale**2, scale, scale))
    for axis in (*spread, rows, columns):
        call.fix(axis)
    return [*before, kept, call.fixed(rows.size * scale), call.fixed(columns.size * scale)]


def pixel_unshuffle(call: Call) -> Axes:
    """Gathers rows and columns into channels."""
    *before, channels, rows, columns = call.axes("self") or []
    scale = int(call["downscale_factor"])
    call.fix(rows)
    call.fix(columns)
    gathered = multiply([channels, call.fixed(scale), call.fixed(scale)])
    return [*before, gathered, call.fixed(rows.size // scale), call.fixed(columns.size // scale)]


def channel_shuffle(call: Call) -> Axes:
    """Exchanges the groups of channels with the channels in each."""
    before, channels, *rest = call.axes("self") or []
    count = int(call["groups"])
    outer, inner = factor(channels, (count, channels.size // count))
    call.fix(outer, "has that many groups")
    return [before, multiply([inner, outer]), *rest]


def im2col(call: Call) -> Axes:
    """Extracts the patches of a feature map: channels times the entries of a patch."""
    before, channels, rows, columns = call.axes("self") or []
    call.fix(rows)
    call.fix(columns)
    entries = prod(int(size) for size in call["kernel_size"])
    return [before, multiply([channels, call.fixed(entries)]), call.fixed(call.shape[2])]


def col2im(call: Call) -> Axes:
    """Puts patches back and adds them up."""
    before, channels, positions = call.axes("self") or []
    entries = prod(int(size) for size in call["kernel_size"])
    kept, inside = factor(channels, (channels.size // entries, entries))
    call.fix(inside)
    call.fix(positions)
    return [before, kept, call.fixed(call.shape[2]), call.fixed(call.shape[3])]


def unfold(call: Call) -> Axes:
    """Makes the windows along an axis a new last axis."""
    axes = list(call.axes("self") or [])
    place = int(call["dimension"]) % len(axes)
    call.fix(axes[place])
    axes[place] = call.fixed(call.shape[place])
    return [*axes, call.fixed(int(call["size"]))]


def resized(call: Call) -> Any:
    """Changes the resolution of a feature map; some poolings also return indices."""
    axes = call.axes("self") or call.axes("input") or call.tensors()[0]
    value = call.node.meta["val"]
    sizes = [int(size) for size in (value if isinstance(value, Tensor) else value[0]).shape]
    rank = next((int(letter) for letter in call.operator if letter in "123"), 2)
    result = list(axes)
    for place in range(len(sizes) - rank, len(sizes)):
        if not axes[place].size == sizes[place] == 1:
            call.fix(axes[place])
            result[place] = call.fixed(sizes[place])
    return result if isinstance(value, Tensor) else [result for _ in value]


def unpooled(call: Call) -> Axes:
    """Puts the entries of a feature map where a pooling says that it took them from."""
    axes, rank = call.axes("self") or [], int(next(letter for letter in call.operator if letter in "123"))
    for axis, place in zip(axes, call.axes("indices") or [], strict=True):
        call.unify(axis, place)
    for axis in axes[-rank:]:
        call.fix(axis)
    return [*axes[:-rank], *(call.fixed(size) for size in call.shape[-rank:])]


def pooled_at_random(call: Call) -> Any:
    """Pools a feature map in regions that random numbers [samples, channels, rank] decide."""
    axes, (samples, channels, rank) = call.axes("self") or [], call.axes("random_samples") or []
    call.fix(rank)
    call.unify(axes[1], channels)
    if len(axes) == rank.size + 2:
        call.unify(axes[0], samples)
    return resized(call)


def cropped(call: Call) -> Any:
    """Resamples what lies in each of some boxes [boxes, 5] of feature maps [images, channels, rows, columns]."""
    (images, channels, *places), (boxes, corners) = call.axes("input") or [], call.axes("rois") or []
    for axis in (images, *places, corners):
        call.fix(axis)
    rows, columns = (call.fixed(int(call[name])) for name in ("pooled_height", "pooled_width"))
    result = [boxes, channels, rows, columns]
    return result if isinstance(call.node.meta["val"], Tensor) else [result, result]


def transformed(call: Call) -> Axes:
    """Writes a signal along some axes as a sum of waves, or back."""
    axes = list(call.axes("self") or [])
    dims = call["dim"]
    if dims is None or dims == []:
        dims = (-2, -1) if call.operator.endswith("2") else range(len(axes))
    for dim in dims if isinstance(dims, list | tuple | range) else [dims]:
        place = int(dim) % len(axes)
        call.fix(axes[place], "mixes its entries")
        axes[place] = call.fixed(call.shape[place])
    return axes


def as_pairs(call: Call) -> Axes:
    """Writes complex numbers as pairs of real ones, along a new last axis."""
    return [*(call.axes("self") or []), call.fixed(2)]


def from_pairs(call: Call) -> Axes:
    """Reads pairs of real numbers along the last axis as complex ones."""
    *axes, pair = call.axes("self") or []
    call.fix(pair, "reads it as pairs")
    return axes


_WAVES = tuple(
    f"fft_{back}{kind}{axes}" for back in ("", "i") for kind in ("fft", "rfft", "hfft") for axes in ("", "2", "n")
)
_VIEWS = ("view", "reshape", "_unsafe_view", "flatten", "unflatten", "reshape_as", "view_as")
_SPLITS = ("split", "split_with_sizes", "chunk", "tensor_split", "unsafe_split", "unsafe_chunk")
_RESIZED = (
    *("max_pool1d", "max_pool2d", "max_pool3d", "avg_pool1d", "avg_pool2d", "avg_pool3d"),
    *("adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_avg_pool3d", "adaptive_max_pool1d"),
    *("adaptive_max_pool2d", "adaptive_max_pool3d", "max_pool1d_with_indices", "max_pool2d_with_indices"),
    "max_pool3d_with_indices",
    *("upsample_nearest1d", "upsample_nearest2d", "upsample_nearest3d", "_upsample_nearest_exact2d"),
    *("upsample_bilinear2d", "upsample_bicubic2d", "upsample_linear1d", "upsample_trilinear3d", "lp_pool2d"),
    *("_upsample_bilinear2d_aa", "_upsample_bicubic2d_aa"),
)

RULES: dict[str, OperatorRule] = {
    **dict.fromkeys(_VIEWS, OperatorRule(axes=reshape, run=run_reshape)),
    **dict.fromkeys(("expand", "expand_as", "broadcast_to"), OperatorRule(axes=expand, run=run_expand)),
    **dict.fromkeys(("permute", "permute_copy"), OperatorRule(axes=permute)),
    **dict.fromkeys(("transpose", "t", "swapaxes", "swapdims"), OperatorRule(axes=transpose)),
    **dict.fromkeys(("mT", "mH", "adjoint"), OperatorRule(axes=transposed_matrices)),
    **dict.fromkeys(("numpy_T", "matrix_H"), OperatorRule(axes=reversed_axes)),
    **dict.fromkeys(("movedim", "moveaxis"), OperatorRule(axes=movedim)),
    **dict.fromkeys(("repeat", "tile"), OperatorRule(axes=repeat)),
    **dict.fromkeys(("cat", "concat", "concatenate"), OperatorRule(axes=cat)),
    **dict.fromkeys(_SPLITS, OperatorRule(axes=split_up, run=run_split)),
    **dict.fromkeys(("slice", "narrow"), OperatorRule(axes=cut)),
    **dict.fromkeys(
        ("pad", "constant_pad_nd", "reflection_pad2d", "replication_pad2d", "reflection_pad1d"), OperatorRule(axes=pad)
    ),
    **dict.fromkeys(("roll", "flip"), OperatorRule(axes=moved_along)),
    **dict.fromkeys(("cumsum", "cumprod", "logcumsumexp", "sort", "argsort"), OperatorRule(axes=ordered)),
    **dict.fromkeys(("channel_shuffle", "native_channel_shuffle"), OperatorRule(axes=channel_shuffle)),
    **dict.fromkeys(_RESIZED, OperatorRule(axes=resized)),
    **dict.fromkeys(("max_unpool2d", "max_unpool3d"), OperatorRule(axes=unpooled)),
    **dict.fromkeys(("fractional_max_pool2d", "fractional_max_pool3d"), OperatorRule(axes=pooled_at_random)),
    **dict.fromkeys(BOXED, OperatorRule(axes=cropped)),
    **dict.fromkeys(_WAVES, OperatorRule(axes=transformed)),
    "view_as_real": OperatorRule(axes=as_pairs),
    "view_as_complex": OperatorRule(axes=from_pairs),
    "stack": OperatorRule(axes=stack),
    "unbind": OperatorRule(axes=unbind),
    "select": OperatorRule(axes=select),
    "squeeze": OperatorRule(axes=squeeze),
    "unsqueeze": OperatorRule(axes=unsqueeze),
    "repeat_interleave": OperatorRule(axes=repeat_interleave),
    "pixel_shuffle": OperatorRule(axes=pixel_shuffle),
    "pixel_unshuffle": OperatorRule(axes=pixel_unshuffle),
    "im2col": OperatorRule(axes=im2col),
    "col2im": OperatorRule(axes=col2im),
    "unfold": OperatorRule(axes=unfold),
}
