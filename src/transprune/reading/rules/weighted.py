"""Rules of operators with a cost: layers, norms, attention and matrix products."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import prod
from typing import Any

from torch import Tensor, broadcast_shapes
from torch.nn import functional as F

from transprune.costs import LayerKind
from transprune.reading.axes import Axis, fix, mark, multiply
from transprune.reading.coupling import Arguments, Axes, Call, Function, OperatorRule, origin_of
from transprune.reading.macs import summed
from transprune.reading.rules.pointwise import broadcast, without_rule
from transprune.reading.trace import letters_of
from transprune.reading.unification import factor


def convolution(call: Call) -> Axes:
    """A convolution: each output channel reads all input channels of its group."""
    inputs, weight, bias = call.axes("input") or [], call.axes("weight") or [], call.axes("bias")
    groups = int(call["groups"])
    rank = len(weight) - 2
    place = len(inputs) - rank - 1
    read, is_depthwise = inputs[place], False
    if groups == 1:
        call.unify(read, weight[1])
        outputs, each = weight[0], weight[1]
    elif weight[1].size == 1 and weight[0].size == groups:
        is_depthwise = True
        call.unify(read, weight[0])
        outputs, each = read, weight[1]
        call.rewrite(groups=outputs)
    else:
        each = weight[1]
        outer, inner = factor(read, (groups, each.size))
        outer_out, _ = factor(weight[0], (groups, weight[0].size // groups))
        call.unify(outer, outer_out)
        call.unify(inner, each)
        outputs = weight[0]
        call.rewrite(groups=outer)
    spatial = _convolved(call, inputs[place + 1 :], call.shape[place + 1 :])
    before = (*inputs[:place], *spatial)
    _add_convolution(
        call,
        each,
        outputs,
        bias,
        operator="depthwise" if is_depthwise else "conv",
        positions=before,
        bias_positions=before,
    )
    return [*inputs[:place], outputs, *spatial]


def transposed_convolution(call: Call) -> Axes:
    """A convolution whose weight has its first two axes exchanged."""
    inputs, weight, bias = call.axes("input") or [], call.axes("weight") or [], call.axes("bias")
    groups = int(call["groups"])
    rank = len(weight) - 2
    place = len(inputs) - rank - 1
    call.unify(inputs[place], weight[0])
    each, outputs = weight[0], weight[1]
    if groups > 1:
        outer, each = factor(weight[0], (groups, weight[0].size // groups))
        outputs = multiply([outer, weight[1]])
        call.rewrite(groups=outer)
    for axis in inputs[place + 1 :]:
        call.fix(axis)
    spatial = [call.fixed(size) for size in call.shape[place + 1 :]]
    read_at, written_at = (*inputs[:place], *inputs[place + 1 :]), (*inputs[:place], *spatial)
    _add_convolution(call, each, outputs, bias, operator="conv", positions=read_at, bias_positions=written_at)
    return [*inputs[:place], outputs, *spatial]


def _add_convolution(
    call: Call,
    each: Axis,
    outputs: Axis,
    bias: Axes | None,
    *,
    operator: LayerKind,
    positions: tuple[Axis, ...],
    bias_positions: tuple[Axis, ...],
) -> None:
    if bias is not None:
        call.unify(outputs, bias[0])
    kernel = (call.axes("weight") or [])[2:]
    for axis in kernel:
        fix(axis, "it is the extent of a kernel")
    call.add_layer(
        operator,
        inputs=each,
        outputs=outputs,
        kernel=prod(axis.size for axis in kernel),
        positions=positions,
        bias_positions=bias_positions,
        along=-len(kernel) - 1,
    )


def _convolved(call: Call, axes: Axes, sizes: tuple[int, ...]) -> Axes:
    """The axes that a kernel moves along; those that keep their size at stride 1 need not be fixed."""
    stride = call["stride"]
    steps = list(stride) if isinstance(stride, list | tuple) else [1 if stride is None else stride]
    result = []
    for position, (axis, size) in enumerate(zip(axes, sizes, strict=True)):
        if axis.size == size and steps[position % len(steps)] == 1:
            mark(axis, ordered=True, inexact=True)  # neighbours are read together
            result.append(axis)
        else:
            call.fix(axis)
            result.append(call.fixed(size))
    return result


def linear(call: Call) -> Axes:
    """A linear layer: each output reads all inputs along the last axis."""
    inputs, weight, bias = call.axes("input") or [], call.axes("weight") or [], call.axes("bias")
    call.unify(inputs[-1], weight[-1])
    outputs = weight[0] if len(weight) == 2 else call.fixed(1)
    if bias is not None and bias:
        call.unify(outputs, bias[0])
    call.add_layer("linear", inputs=weight[-1], outputs=outputs, positions=inputs[:-1])
    return [*inputs[:-1], *([outputs] if len(weight) == 2 else [])]


def bilinear(call: Call) -> Axes:
    """A bilinear layer: each output reads all pairs of an entry of the first and one of the second input."""
    (*positions, first), (*others, second) = call.axes("input1") or [], call.axes("input2") or []
    outputs, *read = call.axes("weight") or []
    for one, other in zip([*positions, first, second], [*others, *read], strict=True):
        call.unify(one, other)
    if call["bias"] is not None:
        call.unify(outputs, (call.axes("bias") or [])[0])
    call.add_layer("linear", inputs=multiply(read), outputs=outputs, positions=positions)
    return [*positions, outputs]


def batch_norm(call: Call) -> Axes:
    """Normalises every channel by its statistics over all other axes."""
    axes = call.axes("input") or []
    channels = axes[1]
    for name in ("weight", "bias", "running_mean", "running_var"):
        own = call.axes(name)
        if own:
            call.unify(channels, own[0])
    for axis in (axes[0], *axes[2:]):
        mark(axis, inexact=True)
    call.add_layer("norm", inputs=channels, outputs=channels)
    return axes


def layer_norm(call: Call) -> Axes:
    """Normalises by statistics over the last axes."""
    axes = call.axes("input") or []
    last = axes[len(axes) - len(call["normalized_shape"]) :]
    for axis in last:
        mark(axis, inexact=True)
    for name in ("weight", "bias"):
        own = call.axes(name)
        for axis, one in zip(last, own or [], strict=False):
            call.unify(axis, one)
    call.rewrite(normalized_shape=list(last))
    channels = multiply(last)
    call.add_layer("norm", inputs=channels, outputs=channels)
    return axes


def group_norm(call: Call) -> Axes:
    """Normalises groups of channels, which stay whole unless one group has all channels."""
    axes = call.axes("input") or []
    count, channels = int(call["num_groups"]), axes[1]
    if count == 1:
        mark(channels, inexact=True)
    else:
        outer, inner = factor(channels, (count, channels.size // count))
        call.fix(inner, "normalises groups of that size")
        call.rewrite(num_groups=outer)
    for name in ("weight", "bias"):
        own = call.axes(name)
        if own:
            call.unify(channels, own[0])
    call.add_layer("norm", inputs=channels, outputs=channels)
    return axes


def prelu(call: Call) -> Axes:
    """A PReLU: a slope for every channel, or one for all."""
    axes, slopes = call.axes("self") or [], call.axes("weight") or []
    if slopes and slopes[0].size > 1:
        call.unify(axes[1], slopes[0])
    return axes


def matmul(call: Call) -> Any:
    """Multiplies matrices, batched over all axes but the last two."""
    other = next(name for name in ("mat2", "other", "vec", "tensor") if name in call.arguments)
    first, second = call.axes("self") or [], call.axes(other) or []
    rows, columns = len(first) > 1, len(second) > 1  # a vector is a matrix of one row or column, which is left out
    result = _product(
        call,
        first if rows else [call.fixed(1), *first],
        second if columns else [*second, call.fixed(1)],
        (call["self"], call[other]),
    )
    return [*result[:-2], *([result[-2]] if rows else []), *([result[-1]] if columns else [])]


def _product(call: Call, first: Axes, second: Axes, sources: tuple[Any, Any]) -> Axes:
    call.unify(first[-1], second[-2])
    before = _broadcast_before(call, first[:-2], second[:-2])
    _add_matrices(call, before, (first[-2], first[-1], second[-1]), sources)
    return [*before, first[-2], second[-1]]


def _add_matrices(call: Call, before: Axes, own: tuple[Axis, Axis, Axis], sources: tuple[Any, Any]) -> None:
    """Records a product of matrices with these rows, entries and columns; what a parameter brings in is a width."""
    rows, shared, columns = own
    behind = [origin_of(source) for source in sources]
    trace = call.coupling.trace
    has_data = any(trace.state(source) is None for source in behind)  # the norm of a weight is no layer
    if has_data and trace.parameter(behind[1]) is not None and columns.size > 1:
        _add_bare_layer(call, sources[1], shared, columns, [*before, rows], along=-1)
    elif has_data and trace.parameter(behind[0]) is not None and rows.size > 1:
        _add_bare_layer(call, sources[0], shared, rows, [*before, columns], along=-2)
    else:
        _add_product(call, before, rows, shared, columns)


def _parameter_behind(call: Call, source: Any) -> str | None:
    return call.coupling.trace.parameter(origin_of(source))


def _add_bare_layer(call: Call, source: Any, inputs: Axis, outputs: Axis, positions: Axes, *, along: int) -> None:
    """Records a product with a parameter that no module for it holds: a linear layer all the same."""
    path = _parameter_behind(call, source) or ""
    is_whole = call.coupling.trace.parameter(source) is not None and len(call.axes_of(source) or []) == 2
    own = replace(call, arguments={"weight": source})
    own.add_layer(
        "linear",
        inputs=inputs,
        outputs=outputs,
        positions=positions,
        weight="weight" if is_whole else None,
        bias=None,
        along=along,
        name=path.removesuffix(".weight"),
    )


def _broadcast_before(call: Call, first: Axes, second: Axes) -> Axes:
    """The axes before those of two matrices, broadcast."""
    sizes = broadcast_shapes([axis.size for axis in first], [axis.size for axis in second])
    return broadcast(call, [first, second], sizes)


def _add_product(call: Call, before: Axes, rows: Axis, shared: Axis, columns: Axis) -> None:
    """Records what a product costs, and that what it is repeated for (heads) is searched rather than its sizes."""
    call.coupling.preferred += before
    _record_product(call, shared, [*before, rows, columns])


def _record_product(call: Call, shared: Axis, others: Axes) -> None:
    *positions, outputs = others
    call.add_layer("matmul", inputs=shared, outputs=outputs, positions=positions, weight=None, bias=None)


def added_product(call: Call) -> Axes:
    """Multiplies matrices and adds a tensor."""
    first, second = ("mat1", "mat2") if "mat1" in call.arguments else ("batch1", "batch2")
    sources = call[first], call[second]
    result = _product(call, call.axes(first) or [], call.axes(second) or [], sources)
    return broadcast(call, [result, call.axes("self") or []], call.shape)


def attention(call: Call) -> Axes:
    """Scaled dot-product attention. Heads may be cut, but not their features, on whose number the scale depends."""
    query, key, value = (list(call.axes(name) or []) for name in ("query", "key", "value"))
    if call["enable_gqa"]:  # several queries, one after another, share a key and a value
        for shared in (key, value):
            shared[-3] = multiply([shared[-3], Axis(query[-3].size // shared[-3].size)])
    before = broadcast(call, [query[:-2], key[:-2], value[:-2]], call.shape[:-2])
    call.unify(query[-1], key[-1])
    call.fix(query[-1], "scales by its size")
    call.unify(key[-2], value[-2])
    mask = call.axes("attn_mask")
    if mask:
        broadcast(call, [[*before, query[-2], key[-2]], mask], [axis.size for axis in (*before, query[-2], key[-2])])
    _add_product(call, before, query[-2], query[-1], key[-2])
    _add_product(call, before, query[-2], key[-2], value[-1])
    return [*before, query[-2], value[-1]]


def einsum(call: Call) -> Any:
    """Multiplies tensors along named axes; of several it is taken apart into pairs before it is traced."""
    tensors = [call.coupling.axes(call.node, source) for source in call["tensors"]]
    if len(tensors) > 2:
        return without_rule(call, "which multiplies several tensors in an order of its own")
    terms, output = letters_of(str(call["equation"]), [len(axes) for axes in tensors])
    return _named_product(call, call["tensors"], terms, output)


def _named_product(call: Call, sources: Sequence[Any], terms: Sequence[str], output: str) -> Axes:
    """Multiplies tensors along axes that have a letter each, as in an einsum."""
    named: dict[str, Axis] = {}
    for letters, source in zip(terms, sources, strict=True):
        for letter, axis in zip(letters, call.axes_of(source) or [], strict=True):
            if letters.count(letter) > 1:
                call.fix(axis, "reads its diagonal")
            if named.get(letter, axis).size == axis.size:
                call.unify(named.setdefault(letter, axis), axis)
            elif axis.size > 1:  # an axis of one entry is broadcast
                named[letter] = axis
    if len(terms) == 2 and summed(terms, output):
        _add_named(call, sources, terms, output, named)
    return [named[letter] for letter in output]


def _add_named(
    call: Call, sources: Sequence[Any], terms: Sequence[str], output: str, named: Mapping[str, Axis]
) -> None:
    """Records a product along named axes; what a parameter alone brings in is a width."""
    shared = multiply([named[letter] for letter in summed(terms, output)])
    for place, source in reversed(list(enumerate(sources))):
        own = [letter for letter in output if letter in terms[place] and letter not in terms[1 - place]]
        if own and _parameter_behind(call, source) is not None:
            rest = [named[letter] for letter in output if letter != own[-1]]
            along = output.index(own[-1]) - len(output)
            _add_bare_layer(call, source, shared, named[own[-1]], rest, along=along)
            return
    _record_product(call, shared, [named[letter] for letter in named if letter in output] or [call.fixed(1)])


def deformable(call: Call) -> Axes:
    """A convolution that samples its input where offsets say; rows and columns keep their sizes."""
    inputs, weight = call.axes("input") or [], call.axes("weight") or []
    for name in ("offset", "mask"):
        samples, *rest = call.axes(name) or []
        call.unify(inputs[0], samples)
        for axis in rest:
            call.fix(axis, "reads where to sample")
    for axis in inputs[2:]:
        call.fix(axis)
    if weight[1].size == inputs[1].size:
        call.unify(inputs[1], weight[1])
    else:
        call.fix(inputs[1], "has groups")
        call.fix(weight[1], "has groups")
        call.fix(weight[0], "has groups")
    bias = call.axes("bias")
    call.unify(weight[0], (bias or [weight[0]])[0])
    positions = (inputs[0], *(call.fixed(size) for size in call.shape[2:]))
    has_bias = call.coupling.trace.parameter(call["bias"]) is not None  # torchvision makes one of zeros otherwise
    call.add_layer(
        "conv",
        inputs=weight[1],
        outputs=weight[0],
        kernel=prod(axis.size for axis in weight[2:]),
        positions=positions,
        bias="bias" if has_bias else None,
        along=1,
    )
    return [inputs[0], weight[0], *positions[1:]]


def weight_norm(call: Call) -> Axes:
    """A weight from its direction and the length of each of its rows, or of the whole."""
    direction = call.axes("v") or []
    length = call.axes("g") or [call.fixed(1) for _ in direction]
    for axis, own in zip(direction, length, strict=True):
        if own.size == axis.size:
            call.unify(axis, own)
        else:
            mark(axis, inexact=True)
    return direction


def tensordot(call: Call) -> Axes:
    """Multiplies two tensors along pairs of axes."""
    sources = call["self"], call["other"]
    first, second = (_letters(call.axes_of(source) or [], start) for source, start in zip(sources, "aA", strict=True))
    for one, other in zip(call["dims_self"], call["dims_other"], strict=True):
        second[int(other)] = first[int(one)]
    output = [letter for letter in (*first, *second) if not (letter in first and letter in second)]
    return _named_product(call, sources, ["".join(first), "".join(second)], "".join(output))


def inner(call: Call) -> Axes:
    """Multiplies two tensors along their last axes."""
    sources = call["self"], call["other"]
    first, second = (_letters(call.axes_of(source) or [], start) for source, start in zip(sources, "aA", strict=True))
    if not first or not second:
        return broadcast(call, call.tensors(), call.shape)
    second[-1] = first[-1]
    return _named_product(call, sources, ["".join(first), "".join(second)], "".join([*first[:-1], *second[:-1]]))


def _letters(axes: Axes, start: str) -> list[str]:
    return [chr(ord(start) + place) for place in range(len(axes))]


def distances(call: Call) -> Axes:
    """The distance of each row of one matrix from each row of another."""
    sources = call["x1"], call["x2"]
    (*first, rows, entries), (*second, others, own) = (call.axes_of(source) or [] for source in sources)
    call.unify(entries, own)
    before = _broadcast_before(call, first, second)
    _add_matrices(call, before, (rows, entries, others), sources)
    return [*before, rows, others]


def outer(call: Call) -> Axes:
    """Multiplies each entry of one vector with each of another."""
    return [*(call.axes("self") or []), *(call.axes("vec2") or [])]


GATES = {"lstm": 4, "gru": 3}
"""Gates of the kinds of recurrent layers; others have one."""


def recurrent(call: Call) -> Any:
    """Recurrent layers of one hidden width, each for one or both directions; the gates are cut together."""
    inputs = call.axes("input")
    if inputs is None:  # packed sequences
        return without_rule(call)
    features, positions = inputs[-1], inputs[:-1]
    samples, steps = positions if call["batch_first"] else reversed(positions)
    call.fix(steps, "goes through it step by step")
    directions, is_long = 2 if call["bidirectional"] else 1, call.operator == "lstm"
    units = directions * int(call["num_layers"])
    count = len(call["params"]) // units
    hidden: Axis | None = None
    handed_on: Axis | None = None
    for start in range(0, len(call["params"]), count):
        weights = list(call["params"][start : start + count])
        projection = weights.pop() if count % 2 else None
        first, again = weights[:2]
        biases = weights[2:] or [None, None]
        hidden = _gates(call, first, hidden)
        if projection is not None:
            narrow, wide = call.axes_of(projection) or []
            call.unify(wide, hidden)
            # torch tells an LSTM with a projection by its width: it must differ from that of the hidden units.
            call.fix(hidden, "must have more hidden units than its projection has")
        handed_on = handed_on or (hidden if projection is None else narrow)
        if projection is not None:
            call.unify(narrow, handed_on)
        for each in weights[1:]:
            _gates(call, each, hidden)
        call.unify((call.axes_of(first) or [])[1], features)
        call.unify((call.axes_of(again) or [])[1], handed_on)
        for weight, bias in ((first, biases[0]), (again, biases[1]), (projection, None)):
            if weight is not None:
                _add_recurrent(call, weight, bias, positions)
        if (start // count + 1) % directions == 0:
            features = multiply([call.fixed(directions), handed_on])
    assert hidden is not None  # there is at least one layer
    assert handed_on is not None
    states = [[call.fixed(units), samples, width] for width in ((handed_on, hidden) if is_long else (handed_on,))]
    given = call["hx"] if is_long else [call["hx"]]
    for source, state in zip(given, states, strict=True):
        for axis, own in zip(call.axes_of(source) or [], state, strict=True):
            call.unify(axis, own)
    return [[*positions, features], *states]


def cell(call: Call) -> Any:
    """One step of a recurrent layer."""
    *positions, features = call.axes("input") or []
    first, again = call["w_ih"], call["w_hh"]
    hidden = _gates(call, first, None)
    for name in ("w_hh", "b_ih", "b_hh"):
        if call[name] is not None:
            _gates(call, call[name], hidden)
    call.unify((call.axes_of(first) or [])[1], features)
    call.unify((call.axes_of(again) or [])[1], hidden)
    _add_recurrent(call, first, call["b_ih"], positions)
    _add_recurrent(call, again, call["b_hh"], positions)
    state, is_long = [*positions, hidden], call.operator == "lstm_cell"
    for source in call["hx"] if is_long else [call["hx"]]:
        for axis, own in zip(call.axes_of(source) or [], state, strict=True):
            call.unify(axis, own)
    return [state, state] if is_long else state


def _gates(call: Call, weight: Any, hidden: Axis | None) -> Axis:
    """The hidden units behind the first axis of a weight or bias, which has all units of one gate after another."""
    rows = (call.axes_of(weight) or [])[0]
    count = GATES.get(call.operator.removesuffix("_cell"), 1)
    gates, units = factor(rows, (count, rows.size // count)) if count > 1 else (call.fixed(1), rows)
    call.fix(gates, "has that many gates")
    if hidden is not None:
        call.unify(hidden, units)
    return units if hidden is None else hidden


def _add_recurrent(call: Call, weight: Any, bias: Any, positions: Axes) -> None:
    outputs, inputs = call.axes_of(weight) or []
    own = replace(call, arguments={"weight": weight, "bias": bias})
    name = call.coupling.trace.module_path(call.node) or call.node.name
    own.add_layer("linear", inputs=inputs, outputs=outputs, positions=positions, name=name)


def glu(call: Call) -> Axes:
    """Gates one half of the channels by the other half."""
    axes = list(call.axes("self") or [])
    place = int(call["dim"] if call["dim"] is not None else -1) % len(axes)
    outer, inner = factor(axes[place], (2, axes[place].size // 2))
    call.fix(outer, "splits it in two")
    axes[place] = inner
    return axes


def _run_convolution(name: str) -> Function:
    def run(arguments: Arguments) -> Tensor:
        convolve: Function = getattr(F, name)
        names = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
        result: Tensor = convolve(*(arguments[each] for each in names))
        return result

    return run


def _run_linear(arguments: Arguments) -> Tensor:
    return F.linear(arguments["input"], arguments["weight"], arguments["bias"])


RULES: dict[str, OperatorRule] = {
    **{
        name: OperatorRule(axes=convolution, run=_run_convolution(name), weight_outputs=0)
        for name in ("conv1d", "conv2d", "conv3d")
    },
    **dict.fromkeys(
        ("conv_transpose1d", "conv_transpose2d", "conv_transpose3d"),
        OperatorRule(axes=transposed_convolution, weight_outputs=1),
    ),
    **dict.fromkeys(("layer_norm", "rms_norm"), OperatorRule(axes=layer_norm)),
    **dict.fromkeys(("matmul", "bmm", "mm", "mv", "dot", "vdot", "linalg_matmul"), OperatorRule(axes=matmul)),
    **dict.fromkeys(("addmm", "baddbmm"), OperatorRule(axes=added_product)),
    "linear": OperatorRule(axes=linear, run=_run_linear, weight_outputs=0),
    "bilinear": OperatorRule(axes=bilinear),
    "batch_norm": OperatorRule(axes=batch_norm, in_training={"training": True}),
    "instance_norm": OperatorRule(axes=batch_norm, in_training={"use_input_stats": True}),
    "group_norm": OperatorRule(axes=group_norm),
    "prelu": OperatorRule(axes=prelu),
    "scaled_dot_product_attention": OperatorRule(axes=attention),
    "einsum": OperatorRule(axes=einsum),
    **dict.fromkeys(("lstm", "gru", "rnn_tanh", "rnn_relu"), OperatorRule(axes=recurrent, in_training={"train": True})),
    **dict.fromkeys(("lstm_cell", "gru_cell", "rnn_tanh_cell", "rnn_relu_cell"), OperatorRule(axes=cell)),
    "_weight_norm": OperatorRule(axes=weight_norm),
    "torchvision::deform_conv2d": OperatorRule(axes=deformable),
    **dict.fromkeys(("cdist", "_cdist_forward"), OperatorRule(axes=distances)),
    "tensordot": OperatorRule(axes=tensordot),
    "inner": OperatorRule(axes=inner),
    **dict.fromkeys(("outer", "ger"), OperatorRule(axes=outer)),
    "glu": OperatorRule(axes=glu),
}
