"""Networks of which a part is searched and the whole is trained: detectors, and others that cannot be traced whole.

What surrounds a part works on lists of images, draws boxes or looks at targets, which no trace holds. It need not be
traced: the part is a network from tensors to tensors, like any other, and what surrounds it is run with the part's
answers in the place of what it would compute itself.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from transprune.errors import ModelError
from transprune.reading.networks import names_of, set_mode, switched, unwrapped
from transprune.reading.trace import Example, check_forward
from transprune.runtime.structures import (
    ATOMS,
    Inputs,
    as_inputs,
    called,
    copied,
    emptied,
    filled,
    inputs_of,
    mapped,
    on_device,
    outline,
    parts_of,
    tensors_in,
)


@dataclass(frozen=True)
class Link:
    """A module of a part, and where its inputs come from."""

    path: str
    """Its path in the whole network."""
    arguments: Any
    """The arguments of its forward, with a hole in the place of each tensor."""
    sources: tuple[tuple[str, int], ...]
    """For each tensor the path of the module that gives it, and its number there; an empty path: the part's inputs."""


class Part(nn.Module):
    """Some modules of a network, each given what others of them return, as a network from tensors to tensors.

    It holds the whole network, so that a smaller part is a smaller whole: `shrink(part, …).whole`. What the other
    modules have of weights stays as it is.

    Args:
        whole: The network; its modules are the part's, not copies of them.
        links: The modules, in the order in which they run.
    """

    def __init__(self, whole: nn.Module, links: Sequence[Link]) -> None:
        super().__init__()
        self.whole, self.links = whole, tuple(links)

    def forward(self, *inputs: Tensor) -> Any:
        """What each of the modules returns, by its path; the inputs are those of `inputs_of`."""
        given: dict[str, list[Tensor]] = {"": list(inputs)}
        returned: dict[str, Any] = {}
        for link in self.links:
            arguments = filled(link.arguments, [given[path][place] for path, place in link.sources])
            outputs = called(self.whole.get_submodule(link.path), arguments)
            returned[link.path], given[link.path] = outputs, list(tensors_in(outputs))
        return returned


ULTRALYTICS = "ultralytics.nn.tasks.DetectionModel", "ultralytics.nn.modules.head.Detect"
"""A network of ultralytics, and the last module of one that detects; by name, so that nothing is imported."""


def is_dense(whole: nn.Module) -> bool:
    """Whether a network is a detector of ultralytics whose heads say what they find at every place: YOLO."""
    layers = getattr(whole, "model", None)
    if not isinstance(layers, nn.Sequential) or not len(layers):
        return False
    return all(name in names_of(type(each)) for name, each in zip(ULTRALYTICS, (whole, layers[-1]), strict=True))


class DenseDetector(Part):
    """A YOLO of ultralytics, as a network from images to what its heads say of every place, before any box is drawn.

    The whole can be traced, but hands on the features that its heads have read, so that their widths would be fixed.
    """

    def __init__(self, whole: nn.Module) -> None:
        super().__init__(whole, ())
        layers: Any = whole.model
        self.stride: int = max(map(int, layers[-1].stride)) or 1

    def forward(self, *inputs: Tensor) -> list[dict[str, Tensor]]:
        """What each set of heads says: boxes [batch, sides, places], scores [batch, classes, places], and the like.

        Args:
            inputs: Images [batch, channels, rows, columns], from 0 to 1.

        Raises:
            ModelError: Rows or columns are no multiples of the largest stride.
        """
        rows, columns = inputs[0].shape[-2:]
        if rows % self.stride or columns % self.stride:
            raise ModelError(
                f"cannot run the {type(self.whole).__name__} on images of {rows} rows and {columns} columns: expected "
                f"multiples of its largest stride, {self.stride}, such as {self._next(rows)} and {self._next(columns)} "
                "(`load_scenes(…, image_size=…)`; `run --image-size` and `inspect --input-size`)"
            )
        returned = self.whole(*inputs)
        said = returned if isinstance(returned, Mapping) else returned[1]  # in evaluation the boxes come first
        heads = said.values() if isinstance(next(iter(said.values())), Mapping) else [said]
        return [{name: each for name, each in head.items() if isinstance(each, Tensor)} for head in heads]

    def _next(self, side: int) -> int:
        return -(-side // self.stride) * self.stride


class Surroundings:
    """What is around a part, which is run with the part's answers. The whole network is untouched.

    Args:
        part: The part.

    Raises:
        ModelError: It is none.
    """

    def __init__(self, part: Part) -> None:
        if not isinstance(part, Part):
            raise ModelError(
                f"cannot tell what is around a {type(part).__name__}: expected a Part, as transprune.part_of finds it "
                "(of a student without a `whole`: the one that it was made of)"
            )
        self.whole, self.links = copied(part.whole).requires_grad_(False), part.links

    def inputs_of(self, inputs: Example) -> tuple[Tensor, ...]:
        """What the part is given when the whole network is given `inputs` in evaluation mode, where its weights are.

        Raises:
            ModelError: The whole network does not run that far.
        """
        found: list[tuple[Tensor, ...]] = []

        def first(*positional: Any, **named: Any) -> Any:
            found.append(self._of_first(inputs_of(positional, named)))
            raise _Reached

        try:
            self._run(inputs, {self.links[0].path: first}, training=False)
        except _Reached:
            return found[0]
        raise ModelError(
            f"cannot run the {type(self.whole).__name__}: it does not call {self.links[0].path!r} for "
            f"{outline(inputs)}; expected inputs like the example's"
        )

    def outputs(self, inputs: Example, answers: Mapping[str, Any], *, training: bool = False) -> Any:
        """What the whole network returns when its part returns `answers`, as `Part.forward` does.

        What comes before the part runs in evaluation mode in any case, as in `inputs_of`: a random choice of sizes,
        say, would be another than the one that the part was given. Norms after it do too: their weights stay as they
        are, and so do their statistics. The answers are the caller's: what changes tensors in place is given copies.

        Raises:
            ModelError: The answers are not of the part's modules.
        """
        paths = [link.path for link in self.links]
        if not isinstance(answers, Mapping) or any(next(tensors_in(answers.get(path)), None) is None for path in paths):
            raise ModelError(
                f"cannot run what is around a part of the {type(self.whole).__name__} with {outline(answers)}: "
                f"expected what the part returns, a dict of what {', '.join(map(repr, paths))} returned"
            )
        self.whole.to(next(tensors_in(answers)).device)
        ways = {link.path: _returning(mapped(answers[link.path], Tensor.clone)) for link in self.links}
        return self._run(inputs, ways, training=training)

    def _run(self, inputs: Example, ways: Mapping[str, Callable[..., Any]], *, training: bool) -> Any:
        set_mode(self.whole, training=False)
        self.whole.training = training
        modules = {path: self.whole.get_submodule(path) for path in ways}

        def first(*positional: Any, **named: Any) -> Any:
            switched(self.whole, training=training)
            for module in self.whole.modules():
                if isinstance(module, nn.modules.batchnorm._NormBase):
                    module.training = False
            return ways[self.links[0].path](*positional, **named)

        for path, module in modules.items():
            module.forward = first if path == self.links[0].path else ways[path]
        weights = next(self.whole.parameters(), None)
        try:
            return called(self.whole, inputs if weights is None else on_device(inputs, weights.device))
        finally:
            for module in modules.values():
                del module.forward

    def _of_first(self, arguments: Any) -> tuple[Tensor, ...]:
        tensors = list(tensors_in(arguments))
        expected = len(self.links[0].sources)
        if len(tensors) != expected:
            raise ModelError(
                f"cannot run the {type(self.whole).__name__}: it gives {self.links[0].path!r} {outline(arguments)}; "
                f"expected {expected} tensors, as for the example"
            )
        return tuple(tensors)


class _Reached(Exception):  # noqa: N818 — no error
    """The part is reached: what follows is not wanted."""


def _returning(value: Any) -> Callable[..., Any]:
    return lambda *_, **__: value


@dataclass
class _Call:
    """A call of a module."""

    path: str
    arguments: Any
    outputs: Any = None
    number: int = 0
    """How many calls began before it."""


def part_of(whole: nn.Module, example: Example, modules: Sequence[str] | None = None) -> Part:
    """The part of a network that can be traced, of which the whole cannot, such as a detector.

    It is made of the modules that take and return nothing but tensors, each once in a forward, and whose tensors come
    from each other, beginning with the first: a backbone, a neck, heads. The largest such modules are taken.

        part = transprune.part_of(detector, ([image, image],))
        small = transprune.compress(part, …, "macs=0.5").student.whole

    Args:
        whole: The network; untouched.
        example: Inputs that it takes in evaluation mode.
        modules: Paths of the modules, in any order; None: they are found. A YOLO of ultralytics is taken whole, up to
            what its heads say of every place.

    Raises:
        ModelError: It does not run on the example; no module of it takes and returns tensors alone; or one that is
            named does not, is not called once, is inside of another, or is given what none before it returns.
    """
    whole, example = unwrapped(whole), as_inputs(example)
    if modules is None and is_dense(whole):
        return DenseDetector(whole)
    modules = [modules] if isinstance(modules, str) else modules
    check_forward(whole, example)
    calls = _calls(whole, example, modules)
    links: list[Link] = []
    known: dict[int, tuple[str, int]] = {}
    for call in calls:
        tensors = list(tensors_in(call.arguments))
        if not links:
            known |= {id(tensor): ("", place) for place, tensor in enumerate(tensors)}
        if all(id(tensor) in known for tensor in tensors):
            links.append(Link(call.path, emptied(call.arguments), tuple(known[id(tensor)] for tensor in tensors)))
            known |= {id(tensor): (call.path, place) for place, tensor in enumerate(tensors_in(call.outputs))}
        elif modules is not None:
            raise ModelError(
                f"cannot make {call.path!r} of the {type(whole).__name__} part of what is searched: it is given "
                f"tensors that neither {links[0].path!r} is given nor a named module before it returns, but what is "
                "computed between them; expected modules that hand their tensors on to each other"
            )
    if not links:
        raise ModelError(
            f"cannot find a part of the {type(whole).__name__} that takes and returns tensors alone, once in each "
            "forward; expected modules such as a backbone and its heads: move what else these are given, such as "
            "sizes or targets, to where they are called from"
        )
    part = Part(whole, links)
    _check(part, example)
    return part


def _check(part: Part, example: Example) -> None:
    """Checks that the part returns what its modules do in the whole network, and the whole with its answers the same.

    What the whole returns does not suffice: a detector that has not learned yet may find nothing in any case.

    Raises:
        ModelError: It does not.
    """
    network = copied(part)
    set_mode(network, training=False)
    around = Surroundings(network)
    returned: list[Any] = []
    for link in part.links:  # copies, as what follows may change them in place
        network.whole.get_submodule(link.path).register_forward_hook(
            lambda _, __, outputs: returned.append(mapped(outputs, Tensor.clone))
        )
    with torch.no_grad():
        wanted = called(network.whole, example)
        found = around.outputs(example, network(*around.inputs_of(example)))
    count = len(part.links)
    if not _is_alike((wanted, returned[:count]), (found, returned[count:])):
        raise ModelError(
            f"cannot take {', '.join(repr(link.path) for link in part.links)} of the {type(part.whole).__name__} for a "
            f"part of it: with what they return for the same inputs it gives {outline(found)} where it gave "
            f"{outline(wanted)}, or other numbers on the way; expected a forward that computes the same whenever it is "
            "called, and changes nothing in place between these modules"
        )


def _is_alike(one: Any, other: Any) -> bool:
    try:
        pairs = list(zip(tensors_in(one), tensors_in(other), strict=True))
        return all(torch.allclose(*pair, 1e-3, 1e-5, equal_nan=True) for pair in pairs)
    except (RuntimeError, ValueError):  # another number of tensors, or other shapes
        return False


@torch.no_grad()
def _calls(whole: nn.Module, example: Example, modules: Sequence[str] | None) -> list[_Call]:
    """The calls of the named modules, or of the largest with weights that run once, from tensors to tensors, in order.

    Raises:
        ModelError: A named module is not there, not called once, or given or returning something else than tensors.
    """
    open_calls: list[_Call] = []
    found: list[_Call] = []
    network = copied(whole)
    set_mode(network, training=False)

    def before(path: str) -> Callable[..., None]:
        def hook(_: nn.Module, positional: Any, named: Any) -> None:
            call = _Call(path, inputs_of(positional, named), number=len(found) + len(open_calls))
            open_calls.append(call)

        return hook

    def after(_: nn.Module, __: Any, outputs: Any) -> None:
        call = open_calls.pop()
        call.outputs = outputs
        found.append(call)

    for path, module in network.named_modules():
        if path:
            module.register_forward_pre_hook(before(path), with_kwargs=True)
            module.register_forward_hook(after)
    called(network, example)
    often = [call.path for call in found]
    with_weights = {path for path, module in network.named_modules() if next(module.parameters(), None) is not None}
    plain = [
        call
        for call in found
        if call.path in with_weights and often.count(call.path) == 1
        if _is_of_tensors(call.arguments) and _is_of_tensors(call.outputs)
    ]
    if modules is not None:
        named = {call.path: call for call in plain}
        for path in modules:
            what = f"cannot make {path!r} of the {type(whole).__name__} part of what is searched: it is"
            if path not in named:
                raise ModelError(
                    f"{what} {_why_not(path, found, with_weights)}; expected one of "
                    f"{', '.join(map(repr, named)) or 'none'}"
                )
            around = next((above for above in _above(path) if above in modules), None)
            if around is not None:
                raise ModelError(f"{what} inside of {around!r}, which is named too; expected one of the two")
        return sorted((named[path] for path in {*modules}), key=lambda call: call.number)
    paths = {call.path for call in plain}
    largest = [call for call in plain if not any(above in paths for above in _above(call.path))]
    return sorted(largest, key=lambda call: call.number)


def _above(path: str) -> Iterator[str]:
    """The paths of the modules around one."""
    while "." in path:
        path = path.rpartition(".")[0]
        yield path


def _is_of_tensors(value: Any) -> bool:
    """Whether a value is made of tensors, in tuples, lists and mappings, and at most flags and numbers beside."""
    return next(tensors_in(value), None) is not None and _has_plain_parts(value)


def _has_plain_parts(value: Any) -> bool:
    if isinstance(value, Tensor | ATOMS):
        return True
    is_plain = isinstance(value, tuple | list | Mapping | Inputs)
    return is_plain and all(map(_has_plain_parts, (parts_of(value) or {}).values()))


def _why_not(path: str, calls: Sequence[_Call], with_weights: Collection[str]) -> str:
    mine = [call for call in calls if call.path == path]
    if path not in with_weights:
        return "no module of it that has weights"
    if len(mine) != 1:
        return f"called {len(mine)} times in a forward"
    return f"given {outline(mine[0].arguments)} and returns {outline(mine[0].outputs)}"
