"""The smaller network that an architecture describes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import chain, islice
from typing import Any, Literal, TypeAlias, cast

import numpy as np
import torch
from torch import Tensor, fx, nn

from transprune.architecture import Architecture
from transprune.errors import OptionError, SpaceError, first_line
from transprune.models.resnet import ResidualSum, initialise, projection
from transprune.reading.equality import difference, outputs_of, probes
from transprune.reading.execution import Program
from transprune.reading.inspection import full_space
from transprune.reading.layouts import Layout, Sizes, full_size, is_prefix, kept_of, size_of
from transprune.reading.macs import counting
from transprune.reading.networks import evaluating, form_tensors, in_evaluation, untouched, unwrapped
from transprune.reading.reading import Reading, read
from transprune.reading.stages import BlockRun, KeptBlocks, calls_by_path, is_inside
from transprune.reading.trace import Example, source_line
from transprune.runtime.structures import as_inputs, copied
from transprune.shrinking.adapters import LeftOut, Returned, adapt, follow_left_out
from transprune.shrinking.traced_network import TracedNetwork, sizes_of, traced_network

StudentWeights = Literal["inherit", "scratch"]


def shrink(
    model: nn.Module,
    architecture: Architecture,
    example: Example,
    *,
    weights: StudentWeights = "inherit",
    reading: Reading | None = None,
) -> nn.Module:
    """Builds the smaller network: an ordinary module of the model's own classes, with the model's parameter names.

    Blocks that a stage does not keep are dropped, parameters are cut to the first units of their widths, and residual
    sums whose sides end up different get a 1×1 projection on the shortcut. The model itself is untouched.

    If the model's forward writes down sizes that cannot follow (a view to a number of channels, say), the smaller
    network is a `TracedNetwork`: it has the same parameter names and runs the traced operators. Its `reason` says why.
    Whether the model's own forward can follow is tested by comparing outputs and MACs of both.

    Args:
        model: The network that the architecture is for.
        architecture: Widths and depths; those it does not name keep their full size. A width may exceed the full one if
            the layer's channels are joined with no others; new channels start at random.
        example: An input batch, or a tuple of the forward's positional arguments.
        weights: `inherit` keeps the weights of the first channels (a new projection starts as the identity on the
            channels that both sides have, and its norm collects statistics in training); `scratch` draws new ones, as
            the paper does.
        reading: An earlier reading, such as `space.reading`; if it does not fit, the model is read again.

    Raises:
        ModelError: The model cannot be read (see `inspect`).
        SpaceError: The architecture does not belong to the model.
        OptionError: `weights` is unknown.
    """
    if weights not in ("inherit", "scratch"):
        raise OptionError(f"cannot shrink with weights={weights!r}; expected 'inherit' or 'scratch'")
    model = unwrapped(model)
    reading = read(model, example, reading).in_blocks.naming(architecture.blocks)
    full_space(reading).check(architecture)
    with untouched(model):
        student = _Shrinking(model, reading, architecture).student(as_inputs(example))
    if weights == "scratch":
        initialise(student)
        form_tensors(student)
    return student


def kept_entries(
    model: nn.Module, architecture: Architecture, example: Example, *, reading: Reading | None = None
) -> dict[str, tuple[np.ndarray, ...]]:
    """Which entries of the model's parameters and buffers the smaller network keeps.

    Args:
        model: The network that the architecture is for.
        architecture: Widths, none above the full one, and depths.
        example: An input batch, or a tuple of the forward's positional arguments.
        reading: As for `shrink`.

    Returns:
        The entries kept along each axis, by the path of every parameter and buffer that the forward uses.

    Raises:
        ModelError: The model cannot be read (see `inspect`).
        SpaceError: The architecture does not belong to the model.
    """
    model = unwrapped(model)
    reading = read(model, example, reading).in_blocks.naming(architecture.blocks)
    full_space(reading).check(architecture)
    sizes = _Shrinking(model, reading, architecture).sizes
    return {
        name: tuple(kept_of(layout, sizes, reading.first_units) for layout in layouts)
        for name, layouts in reading.states.items()
        if name not in reading.trace.constants
    }


_Number: TypeAlias = "int | tuple[int, ...]"
_Numbers: TypeAlias = "dict[tuple[str, str], _Number]"
"""Values of attributes, by the path of the module and the attribute's name."""
_Line: TypeAlias = "tuple[str, int, str, int]"
"""A line of code, which call there, its argument, and which number of that."""
MOST_GUESSES = 16
"""So many times is the forward of a student tried at most."""


@dataclass(frozen=True)
class _Shrinking:
    """A model, what was read from it, and the architecture to make."""

    model: nn.Module
    reading: Reading
    architecture: Architecture

    @property
    def sizes(self) -> Sizes:
        return sizes_of(self.architecture, self.reading)

    def student(self, inputs: Example) -> nn.Module:
        """The smaller network, of the model's own classes if its forward can follow."""
        own = self._own(inputs)
        traced = traced_network(self.program, copied(own), self.sizes, reason="")
        tried = probes(inputs, self.reading.trace)
        problem = _disagreement(own, traced, tried)
        if problem is None:
            return own
        for changed in self._other_ways(own, inputs):
            if _disagreement(changed, traced, tried) is None:
                return changed
        return traced_network(self.program, own, self.sizes, reason=problem)

    def _other_ways(self, own: nn.Module, inputs: Example) -> Iterator[nn.Module]:
        """Networks of the model's own classes whose forwards may follow where that of the first one does not."""
        yield from self._with_taken_numbers(own)
        if self._blocks_gone:
            for student in (_by_place(copied(own)), self._own(inputs, keeps_places=True)):
                yield student
                yield from self._with_taken_numbers(student)
        if any(True for _ in self._branches_gone):
            yield self._own(inputs, with_sums=True)

    def _own(self, inputs: Example, *, keeps_places: bool = False, with_sums: bool = False) -> nn.Module:
        """The smaller network of the model's own classes, whether or not its forward can follow.

        Args:
            inputs: The inputs of a forward.
            keeps_places: Whether modules without weights stand where blocks went, for forwards that count blocks.
            with_sums: Whether a module goes with a branch that also adds it, as those of BLOOM do.
        """
        student = self._cut_model(inputs, keeps_places=keeps_places)
        gone: dict[str, bool] = {}
        for stage, place in self._branches_gone:
            gone |= self._modules_of_branch(stage, place, with_sums=with_sums)
        self._leave_out(student, gone, inputs)
        self._take_parameters_of_branches(student)
        follow_left_out(student)
        return student

    @cached_property
    def program(self) -> Program:
        return Program(self.reading)

    @cached_property
    def _calls(self) -> dict[str, list[fx.Node]]:
        return calls_by_path(self.reading.trace)

    def _cut_model(self, inputs: Example, *, keeps_places: bool) -> nn.Module:
        student = copied(self.model)
        if keeps_places:
            self._leave_out(student, dict.fromkeys(self._blocks_gone, False), inputs)
        for path in () if keeps_places else self._blocks_gone:
            container, _, name = path.rpartition(".")
            del student.get_submodule(container)._modules[name]
        self._cut_parameters(student)
        form_tensors(student)
        self._set_numbers(student)
        originals = dict(self.model.named_modules())
        with evaluating(student, self.model):
            for name, module in reversed(list(student.named_modules())):  # parts before what they are parts of
                if name in originals and type(module) is type(originals[name]):
                    adapt(module, originals[name])
        self._add_projections(student)
        return student

    @cached_property
    def _blocks_gone(self) -> list[str]:
        """Paths of the blocks of which nothing is kept."""
        found: list[str] = []
        for stage in self.reading.stages:
            owners = stage.owners or stage.blocks
            in_use = {owners[place] for place in self.architecture.kept(stage.name, stage.blocks)}
            found += [path for path in dict.fromkeys(owners) if path not in in_use]
        return found

    @property
    def _branches_gone(self) -> Iterator[tuple[BlockRun, int]]:
        """Stage and position of the branches that are left out of blocks that stay."""
        for stage in self.reading.stages:
            kept = self.architecture.kept(stage.name, stage.blocks)
            for place, owner in enumerate(stage.owners):
                if place not in kept and owner not in self._blocks_gone:
                    yield stage, place

    def _leave_out(self, student: nn.Module, gone: Mapping[str, bool], inputs: Example) -> None:
        """Puts modules without weights in place of some; each adds nothing, or hands on what it reads."""
        structures = _structures(self.model, list(gone), inputs) if gone else {}
        for path, adds_nothing in gone.items():
            parent, _, name = path.rpartition(".")
            replaced = student.get_submodule(path)
            left_out = LeftOut(structures.get(path), adds_nothing=adds_nothing, replaced=replaced)
            student.get_submodule(parent)._modules[name] = left_out.train(replaced.training)

    def _take_parameters_of_branches(self, student: nn.Module) -> None:
        """Takes the parameters that a block itself reads in a branch that is left out: its forward finds zeros."""
        for stage, place in self._branches_gone:
            for path in self._parameters_of_branch(stage, place):
                parent, _, name = path.rpartition(".")
                module = _module_at(student, parent)
                if module is not None and not isinstance(module, LeftOut):
                    zero = module.get_parameter(name).detach().new_zeros(())
                    del module._parameters[name]
                    module.register_buffer(name, zero, persistent=False)

    def _parameters_of_branch(self, stage: BlockRun, place: int) -> list[str]:
        """The parameters that only a branch reads."""
        trace = self.reading.trace
        read = [source for node in stage.members[place] for source in node.all_input_nodes]
        return [
            path
            for source in read
            if (path := trace.parameter(source)) is not None and stage.members[place].issuperset(source.users)
        ]

    def _modules_of_branch(self, stage: BlockRun, place: int, *, with_sums: bool) -> dict[str, bool]:
        """The largest modules that run only in a branch, or only behind its sum, and whether they are to add nothing.

        That is the last one before the sum. The others hand on what they read, and so does one that also adds.
        """
        owner, total = stage.owners[place], stage.sums[place]
        assert total is not None  # else the block is not divided
        branch, ahead = set[fx.Node](), [total]
        while ahead:
            new = [each for each in ahead.pop().all_input_nodes if each in stage.members[place] - branch]
            branch.update(new)
            ahead += new
        behind = stage.members[place] - branch - {total}
        parts = [branch, behind, *([stage.members[place]] if with_sums else [])]
        found: dict[str, set[fx.Node]] = {}
        for path, module in self.model.get_submodule(owner).named_modules(prefix=owner):
            inside = set(self._calls.get(path, ()))
            is_own = inside and any(inside <= part for part in parts) and any(True for _ in module.parameters())
            if is_own and not any(is_inside(path, each) for each in found):
                found[path] = inside
        adds = any(total in inside for inside in found.values())
        order = [node for node in self.reading.trace.calls if node in branch]
        ends = {path: max(map(order.index, inside)) for path, inside in found.items() if inside <= branch and not adds}
        return {path: path in ends and ends[path] == max(ends.values()) for path in found}

    def _cut_parameters(self, student: nn.Module) -> None:
        done: dict[int, nn.Parameter] = {}
        for path, tensor, owner, name in list(_tensors(student)):  # as they were before any was cut
            names = self.program.aliases.get(path, (path,))
            layouts = next((self.reading.states[one] for one in names if one in self.reading.states), None)
            if layouts is None or all(size_of(layout, self.sizes) == full_size(layout) for layout in layouts):
                continue
            if isinstance(tensor, nn.Parameter):
                if id(tensor) not in done:
                    done[id(tensor)] = nn.Parameter(self._cut(tensor, layouts), tensor.requires_grad)
                owner._parameters[name] = done[id(tensor)]
            else:
                owner._buffers[name] = self._cut(tensor, layouts)

    @torch.no_grad()
    def _cut(self, tensor: Tensor, layouts: tuple[Layout, ...]) -> Tensor:
        for axis, layout in enumerate(layouts):
            size = size_of(layout, self.sizes)
            kept = kept_of(layout, self.sizes, self.reading.first_units)
            if size > len(kept):
                tensor = _widened(tensor, axis, size, layout)
            elif len(kept) < tensor.shape[axis] or (np.diff(kept) != 1).any():
                tensor = tensor.index_select(axis, torch.from_numpy(kept).to(tensor.device))
        return tensor.detach().clone(memory_format=torch.contiguous_format)

    def _set_numbers(self, student: nn.Module) -> None:
        """Sets numbers that no parameter shows: groups of convolutions and norms, channels of norms without weights."""
        for facts in self.reading.layers:
            numbers = dict(self.reading.rewrites.get(facts.use.node, {}))
            if facts.use.operator == "norm" and facts.use.weight is None:
                numbers["num_features"] = facts.outputs
            module = _module_at(student, facts.use.name)
            for name in ("groups", "num_groups", "num_features"):
                layout = numbers.get(name, ())
                if not isinstance(layout, tuple) and isinstance(getattr(module, name, None), int):
                    setattr(module, name, size_of(layout, self.sizes))
            shape = numbers.get("normalized_shape")
            if isinstance(module, nn.LayerNorm) and isinstance(shape, tuple):
                module.normalized_shape = tuple(size_of(layout, self.sizes) for layout in shape)

    def _with_taken_numbers(self, student: nn.Module) -> Iterator[nn.Module]:
        """Copies whose modules hold other numbers, those that their forwards hand to operators as sizes.

        A number is the size that a line of a forward asks for if the two are equal in every module of the class. Where
        chance leaves several answers, each number is also tried alone with another one.
        """
        options: list[list[_Numbers]] = []
        paths: dict[type, list[str]] = {}
        for path, module in self.model.named_modules():
            if type(_module_at(student, path)) is type(module):
                paths.setdefault(type(module), []).append(path)
        taken = self._taken_sizes()
        for instances in paths.values():
            for name in vars(self.model.get_submodule(instances[0])):
                found = _answers(self.model, name, {path: taken.get(path, {}) for path in instances})
                if found:
                    options.append(found)
        usual = [each[0] for each in options]
        others = (
            [*usual[:place], other, *usual[place + 1 :]] for place, each in enumerate(options) for other in each[1:]
        )
        for chosen in islice(chain([usual] if usual else [], others), MOST_GUESSES):
            changed = copied(student)
            for (path, name), number in chain.from_iterable(each.items() for each in chosen):
                module = changed.get_submodule(path)
                setattr(module, name, number if isinstance(number, int) else type(vars(module)[name])(number))
            yield changed

    def _taken_sizes(self) -> dict[str, dict[_Line, tuple[_Number, _Number]]]:
        """What each line of a module's forward asks for, in the unpruned network and after the cut."""
        found: dict[str, dict[_Line, tuple[_Number, _Number]]] = {}
        calls = Counter[tuple[str, str]]()
        for node, arguments in self.reading.rewrites.items():
            place = (self.reading.trace.module_path(node), source_line(node))
            lines = found.setdefault(place[0], {})
            for name, given in arguments.items():
                for which, layout in enumerate((given, *given) if isinstance(given, tuple) else (given,)):
                    pair = (_number(layout, Sizes()), _number(layout, self.sizes))
                    lines[place[1], calls[place], name, which] = pair
            calls[place] += 1
        return found

    def _add_projections(self, student: nn.Module) -> None:
        sums = set(self.program.free_sums.values())
        for facts in self.reading.layers:
            inputs, outputs = size_of(facts.inputs, self.sizes), size_of(facts.outputs, self.sizes)
            total = _module_at(student, facts.use.name.removesuffix(".shortcut"))
            if facts.use.name in sums and inputs != outputs and isinstance(total, ResidualSum):
                added = projection(inputs, outputs, has_norm=total.has_norm).to(next(student.parameters()))
                nn.init.dirac_(next(added.parameters()))
                total.shortcut = added.train(total.training)


def _by_place(student: nn.Module) -> nn.Module:
    """The same network; lists that lost a block give the others by their places, as torch does by their names."""
    for module in student.modules():
        if type(module) is nn.ModuleList and [*module._modules] != [*map(str, range(len(module)))]:
            module.__class__ = KeptBlocks
    return student


def _number(layout: Layout | tuple[Layout, ...], sizes: Sizes) -> _Number:
    """How many entries of one layout, or of each of several, are in use."""
    return tuple(size_of(each, sizes) for each in layout) if isinstance(layout, tuple) else size_of(layout, sizes)


def _answers(
    model: nn.Module, name: str, taken: Mapping[str, Mapping[_Line, tuple[_Number, _Number]]]
) -> list[_Numbers]:
    """What an attribute of a class may have to be after a cut, the most likely first; nothing if it need not change."""
    numbers = {path: _as_number(vars(model.get_submodule(path)).get(name)) for path in taken}
    lines = dict.fromkeys(line for asked in taken.values() for line in asked)
    fitting = [
        line for line in lines if all(numbers[p] == asked[line][0] for p, asked in taken.items() if line in asked)
    ]
    each = [{(path, name): asked[line][1] for path, asked in taken.items() if line in asked} for line in fitting]
    if all(now == numbers[path] for found in each for (path, _), now in found.items()):
        return []
    together: _Numbers = {key: now for found in each for key, now in found.items()}
    if all(together[key] == now for found in each for key, now in found.items()):
        return [together, {}]
    return [{}, *(found for place, found in enumerate(each) if found not in each[:place])]


def _as_number(value: object) -> _Number | None:
    """A value of a module as `_number` gives it; None if it is no whole number, nor several."""
    if type(value) in (list, tuple, torch.Size):
        several = tuple(cast(Sequence[object], value))
        return cast(tuple[int, ...], several) if all(type(each) is int for each in several) else None
    return value if type(value) is int else None


def _structures(model: nn.Module, paths: Sequence[str], inputs: Example) -> dict[str, Returned]:
    """What modules return, where it is several values."""
    found: dict[str, Returned] = {}

    def note(path: str, module: nn.Module, arguments: Any, named: Any, outputs: Any) -> None:
        if isinstance(outputs, tuple):
            tensors = [place for place, each in enumerate(outputs) if isinstance(each, Tensor)]
            given = {**dict(enumerate(arguments)), **named}.items()
            keys = [next((key for key, one in given if one is each and one is not None), None) for each in outputs]
            found[path] = Returned(tensors[0] if tensors else 0, tuple(keys))

    handles = [model.get_submodule(path).register_forward_hook(partial(note, path), with_kwargs=True) for path in paths]
    try:
        outputs_of(model, inputs)
    finally:
        for handle in handles:
            handle.remove()
    return found


def _tensors(network: nn.Module) -> Iterator[tuple[str, Tensor, nn.Module, str]]:
    """Every parameter and buffer with its path, its module and its name there; shared ones under each name."""
    for path, module in network.named_modules(remove_duplicate=False):
        for kind in (module._parameters, module._buffers):
            for name, tensor in list(kind.items()):
                if tensor is not None:
                    yield f"{path}.{name}" if path else name, tensor, module, name


def _module_at(network: nn.Module, path: str) -> nn.Module | None:
    try:
        return network.get_submodule(path)
    except AttributeError:
        return None


def _widened(tensor: Tensor, axis: int, size: int, layout: Layout) -> Tensor:
    """A tensor with new entries along an axis, drawn with its own mean and spread."""
    if not is_prefix(layout):
        raise SpaceError(
            f"cannot make a layer wider than in the unpruned network: its {full_size(layout)} channels are joined with "
            f"others"
        )
    extent = [*tensor.shape]
    extent[axis] = size - tensor.shape[axis]
    spread = float(tensor.float().std()) if tensor.numel() > 1 else 0.0
    drawn = torch.randn(extent, device=tensor.device) * spread + float(tensor.float().mean())
    return torch.cat([tensor, drawn.to(tensor)], dim=axis)


def _disagreement(own: nn.Module, traced: TracedNetwork, tried: Example) -> str | None:
    """Why a cut network's own forward differs from the traced operators; None if they agree."""
    try:
        with counting() as predicted:
            expected = outputs_of(traced.eval(), tried)
        with counting() as counted:
            found = outputs_of(in_evaluation(own), tried)
    except Exception as error:  # a user's forward may raise anything
        return f"its own forward cannot follow the cut ({first_line(error)})"
    problem = difference(found, expected)
    if problem is None and counted.macs != predicted.macs:  # such as a sum over zeros, of which one is enough
        problem = f"takes {counted.macs:,} MACs instead of {predicted.macs:,}"
    return None if problem is None else f"its own forward {problem} after the cut"
