"""Networks whose inputs and outputs are nested: mappings, lists, records, flags and named arguments."""

from __future__ import annotations

import copy
from collections import OrderedDict, UserDict, namedtuple
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

import transprune
from transprune import Inputs, LoaderData, SearchOptions, Task
from transprune.errors import DataError, ModelError
from transprune.exports.formats import check_pt2, export_program, pt2_bytes, takes_any_batch
from transprune.exports.runtimes import RUNTIMES, check_files
from transprune.options import DistillationOptions
from transprune.reading.trace import rebatched, sample_axes
from transprune.runtime.structures import (
    called,
    emptied,
    filled,
    form_of,
    joined,
    mapped,
    on_device,
    samples_in,
    sliced,
    tensors_in,
)
from transprune.training.batches import Batch


class Body(nn.Module):
    """Rows [batch, 6] to three numbers a row, which a mask [batch, 3] may leave out."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Linear(6, 16), nn.Linear(16, 12), nn.Linear(12, 3)

    def forward(self, rows: Tensor, mask: Tensor | None = None) -> Any:
        found = self.last(self.second(self.first(rows).relu()).relu())
        return found if mask is None else found * mask


@dataclass
class Row:
    rows: Tensor
    mask: Tensor | None = None


@dataclass
class Found:
    numbers: Tensor
    mask: Tensor | None
    note: str = "no tensor"


class Pair(NamedTuple):
    rows: Tensor
    mask: Tensor


class Encoding(UserDict):
    """As tokenizers return: a mapping that is no dict."""


class Holder:
    """A class of the user's own, with tensors as attributes."""

    def __init__(self, rows: Tensor, mask: Tensor) -> None:
        self.rows, self.mask = rows, mask


class OfMapping(Body):
    def forward(self, batch: Any) -> Any:
        return {"numbers": super().forward(batch["rows"], batch["mask"]), "none": None}


class OfRecord(Body):
    def forward(self, record: Any) -> Any:
        return Found(super().forward(record.rows, record.mask), record.mask)


class OfPair(Body):
    def forward(self, pair: Pair) -> Any:
        return Pair(super().forward(pair.rows, pair.mask), pair.mask)


class OfList(Body):
    def forward(self, parts: list[Tensor]) -> Any:
        return [super(OfList, self).forward(part) for part in parts]


class OfFlags(Body):
    def forward(self, rows: Tensor, is_masked: bool, kind: str = "plain", *, mask: Tensor | None = None) -> Any:
        found = super().forward(rows, mask if is_masked else None)
        return found if kind == "plain" else found.tanh()


class OfNested(Body):
    def forward(self, given: dict[str, Any], scale: float) -> Any:
        rows, (mask, _) = given["rows"], given["more"]
        return ({"numbers": super().forward(rows[0], mask) * scale}, [rows[0]])


class OfWrittenSizes(Body):
    """Its forward writes down a width, so that its students run the traced operators."""

    def forward(self, batch: Any, *, mask: Tensor | None = None) -> Any:
        found = self.first(batch["rows"]).relu().view(-1, 16)
        return Found(self.last(self.second(found).relu()), mask)


def rows(count: int = 2) -> Tensor:
    return torch.randn(count, 6, generator=torch.Generator().manual_seed(count))


def mask(count: int = 2) -> Tensor:
    return torch.ones(count, 3)


CASES: dict[str, tuple[type[nn.Module], Any]] = {
    "by position": (Body, lambda count: (rows(count), mask(count))),
    "with None": (Body, lambda count: (rows(count), None)),
    "by name": (Body, lambda count: {"mask": mask(count), "rows": rows(count)}),
    "by name, ordered": (Body, lambda count: OrderedDict(rows=rows(count), mask=mask(count))),
    "by name, encoded": (Body, lambda count: Encoding(rows=rows(count), mask=mask(count))),
    "a dict": (OfMapping, lambda count: {"rows": rows(count), "mask": mask(count)}),
    "a dict in a tuple": (OfMapping, lambda count: ({"rows": rows(count), "mask": None},)),
    "an encoding": (OfMapping, lambda count: Encoding(rows=rows(count), mask=mask(count))),
    "a record": (OfRecord, lambda count: Row(rows(count), mask(count))),
    "a record with None": (OfRecord, lambda count: Row(rows(count))),
    "an object": (OfRecord, lambda count: Holder(rows(count), mask(count))),
    "a named tuple": (OfPair, lambda count: Pair(rows(count), mask(count))),
    "a list": (OfList, lambda count: [rows(count), rows(count)]),
    "flags": (OfFlags, lambda count: (rows(count), False, "other")),
    "flags and names": (OfFlags, lambda count: Inputs(rows(count), True, mask=mask(count))),
    "nested": (OfNested, lambda count: ({"rows": [rows(count)], "more": (mask(count), None)}, 2.0)),
    "written sizes": (OfWrittenSizes, lambda count: Inputs({"rows": rows(count)}, mask=mask(count))),
}


def network_of(name: str) -> nn.Module:
    torch.manual_seed(0)
    return CASES[name][0]().eval()


def inputs_of(name: str, count: int = 2) -> Any:
    return CASES[name][1](count)


def loss(outputs: Any, targets: Any) -> Tensor:
    found = next(tensors_in(outputs))
    return nn.functional.mse_loss(found, targets[: len(found)])


TASK = Task(loss=loss, split=lambda batch: (batch["inputs"], batch["targets"]))
SEARCH = SearchOptions(epochs=1, warm_up_epochs=0, start="model", alignment="pad", distillation=0.5)
DISTILLATION = DistillationOptions(epochs=1, warm_up_epochs=0)


def data_of(name: str, count: int = 8) -> LoaderData:
    batches = [{"inputs": inputs_of(name, count), "targets": torch.zeros(count, 3)}]
    return LoaderData(train=batches, test=batches, search=(batches, batches), example=inputs_of(name))


@pytest.mark.parametrize("name", CASES)
def test_every_verb_takes_inputs_of_any_structure(name):
    network, inputs = network_of(name), inputs_of(name)
    before = copy.deepcopy(network.state_dict())
    space = transprune.inspect(network, inputs)
    assert space.macs(space.full_architecture()) == transprune.count_macs(network, inputs) == space.reading.counted
    found = transprune.search(network, data_of(name), "macs=0.5", SEARCH, space=space, task=TASK)
    student = transprune.shrink(network, found.architecture, inputs, reading=space.reading)
    assert transprune.count_macs(student, inputs) == space.macs(found.architecture)
    student = transprune.distill(student, network, data_of(name), DISTILLATION, task=TASK)
    outputs, expected = called(student, inputs_of(name, 5)), called(network, inputs_of(name, 5))
    assert form_of(outputs) == form_of(expected)
    assert [each.shape for each in tensors_in(outputs)] == [each.shape for each in tensors_in(expected)]
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())


@pytest.mark.parametrize("name", ["by name", "a record", "flags and names", "nested"])
def test_the_student_of_the_full_architecture_computes_what_the_network_does(name):
    network, inputs = network_of(name), inputs_of(name)
    student = transprune.shrink(network, transprune.Architecture(), inputs)
    for found, expected in zip(
        *(tensors_in(called(each, inputs_of(name, 7))) for each in (student, network)), strict=True
    ):
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("name", ["by name", "a record", "a list"])
def test_compress_takes_batches_of_any_structure(name):
    found = transprune.compress(network_of(name), data_of(name, 16), "macs=0.5", samples=16, task=TASK)
    assert transprune.count_macs(found.student, inputs_of(name)) <= found.limits[0].most


@pytest.mark.parametrize("name", ["by name", "a record", "written sizes"])
def test_programs_take_the_tensors_one_after_another(name):
    network, inputs = network_of(name), inputs_of(name)
    student = transprune.shrink(network, transprune.Architecture(widths={"first": 8}), inputs)
    program = export_program(student, inputs)
    assert takes_any_batch(program)
    assert check_pt2(pt2_bytes(program), student, [inputs_of(name, count) for count in (1, 5)]) < 1e-5


def test_an_onnx_file_takes_the_tensors_one_after_another():
    network, inputs = network_of("a record"), inputs_of("a record")
    program = export_program(network, inputs)
    runtime = RUNTIMES["onnxruntime"]
    assert check_files(runtime, runtime.write(program), network, [inputs, inputs_of("a record", 5)]) < 1e-5


def test_traced_operators_follow_names_whatever_their_order_and_refuse_other_flags():
    network, inputs = network_of("written sizes"), inputs_of("written sizes")
    student = transprune.shrink(network, transprune.Architecture(widths={"first": 8}), inputs)
    assert type(student).__name__.startswith("TracedNetwork")
    expected = called(student, inputs).numbers
    torch.testing.assert_close(student(mask=mask(), batch={"rows": rows()}).numbers, expected)
    with pytest.raises(DataError, match=r"cannot run what was traced .* nested otherwise, or other flags"):
        student({"rows": rows()})
    with pytest.raises(DataError, match="unexpected keyword argument 'weights'"):
        student({"rows": rows()}, weights=mask())


def test_a_batch_of_another_structure_than_the_example_is_refused():
    data = data_of("with None")
    data = LoaderData(
        train=data_of("by position").train, test=data.test, search=data_of("by position").search, example=data.example
    )
    with pytest.raises(DataError, match=r"on inputs of a tuple of .*expected inputs like the example, a tuple of"):
        transprune.search(network_of("with None"), data, "macs=0.5", SEARCH, task=TASK)


def test_an_example_without_a_tensor_is_refused():
    with pytest.raises(ModelError, match="the example is a dict of rows: a int; expected"):
        transprune.inspect(network_of("by name"), {"rows": 3})
    with pytest.raises(DataError, match="cannot use the example: it is a dict of rows: a int"):
        LoaderData(train=[1], test=[1], example={"rows": 3})


def test_a_forward_may_write_into_containers_but_not_over_tensors():
    given = {"rows": rows(), "more": {}, "others": [rows()]}

    def writing(given):
        given["more"]["seen"] = given.pop("rows")
        return given["others"].pop()

    assert torch.equal(called(writing, (given,)), rows())
    assert given.keys() == {"rows", "more", "others"}
    assert (given["more"], len(given["others"])) == ({}, 1)
    with pytest.raises(ModelError, match=r"cannot call relu_: it writes over its inputs"):
        called(torch.relu_, rows())


# Structures themselves.


Point = namedtuple("Point", "x y")


def test_values_are_taken_apart_and_put_together_again():
    value = {"b": [torch.zeros(1), None], "a": Point(torch.ones(2), Row(torch.ones(3))), "c": "text"}
    assert [len(tensor) for tensor in tensors_in(value)] == [2, 3, 1]
    again = filled(emptied(value), list(tensors_in(value)))
    assert form_of(again) == form_of(value) == form_of(emptied(value))
    assert type(again["a"]) is Point
    assert type(again["a"].y) is Row
    assert again["c"] == "text"
    assert mapped("text", Tensor.clone) == "text"
    assert form_of({"a": 1}) != form_of({"a": 2})
    assert form_of({"a": torch.zeros(1)}) != form_of({"b": torch.zeros(1)})


def test_what_holds_itself_ends():
    value = {"a": torch.zeros(2)}
    value["self"] = value
    assert len(list(tensors_in(value))) == 1
    assert on_device(value, "cpu")["a"] is value["a"]


def test_batches_are_cut_and_joined_along_their_samples():
    batch = {"ids": torch.arange(8).view(4, 2), "scale": torch.tensor(2.0), "names": ["a", "b", "c", "d"]}
    part = sliced(batch, slice(1, 3), 4)
    assert part["ids"].tolist() == [[2, 3], [4, 5]]
    assert part["names"] == ["b", "c"]
    assert joined([batch, part])["ids"].shape == (6, 2)
    assert joined([batch, part])["scale"].dim() == 0
    timed = torch.zeros(5, 4, 3)
    assert samples_in((timed,), axis=1) == 4
    assert sliced(timed, slice(0, 2), 4, 1).shape == (5, 2, 3)
    assert joined([timed, timed], 1).shape == (5, 8, 3)


@pytest.mark.parametrize("targets", [torch.zeros(8), [torch.zeros(8, 2), torch.zeros(1)], {"class": torch.zeros(8)}])
def test_what_all_samples_share_may_come_first(targets):
    shared = {"positions": torch.zeros(1, 5), "mask": torch.zeros(5, 5), "tokens": torch.zeros(8, 5)}
    assert samples_in(shared, targets) == 8
    assert samples_in((torch.zeros(5, 1, 3), torch.zeros(5, 8)), targets, axis=1) == 8
    assert samples_in((torch.zeros(1, 5), torch.zeros(8, 5)), torch.zeros(3)) == 1, "the targets are of something else"


def test_a_list_of_images_beside_as_many_targets_has_a_sample_for_each_entry():
    images, targets = [torch.zeros(3, 8, 8)] * 2, [{"boxes": torch.zeros(5, 4)}, {"boxes": torch.zeros(1, 4)}]
    batch = Batch((images,), targets)
    assert batch.samples == 2
    part = batch.part(slice(1, 2))
    assert len(part.inputs[0]) == 1
    assert len(part.targets[0]["boxes"]) == 1


# Sequence-first networks.


class Recurrent(nn.Module):
    """Sequences [length, batch, 6] to three numbers a sequence."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.last = nn.LSTM(6, 8), nn.Linear(8, 3)

    def forward(self, features: Tensor) -> Tensor:
        return self.last(self.layer(features)[0][-1])


class Translating(nn.Module):
    """Two sequences of vectors [length, batch, 8], a mask [batch, length] of the first."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Transformer(8, 2, 1, 1, 16)

    def forward(self, source: Tensor, target: Tensor, padding: Tensor | None = None) -> Tensor:
        return self.layer(source, target, src_key_padding_mask=padding)


TIMED = {
    "lstm": (Recurrent, (torch.randn(5, 4, 6),), (1,)),
    "one sample": (Recurrent, (torch.randn(5, 1, 6),), (1,)),
    "as many steps as samples": (Recurrent, (torch.randn(4, 4, 6),), (1,)),
    "transformer": (Translating, (torch.randn(5, 4, 8), torch.randn(5, 4, 8)), (1, 1)),
    "transformer, other lengths": (Translating, (torch.randn(5, 2, 8), torch.randn(7, 2, 8)), (1, 1)),
    "with a mask": (
        Translating,
        (torch.randn(5, 3, 8), torch.randn(7, 3, 8), torch.zeros(3, 5, dtype=torch.bool)),
        (1, 1, 0),
    ),
}


@pytest.mark.filterwarnings("ignore:enable_nested_tensor")
@pytest.mark.parametrize("name", TIMED)
def test_samples_are_counted_along_the_axis_that_the_network_keeps_apart(name):
    build, inputs, axes = TIMED[name]
    network = build().eval()
    assert sample_axes(network, inputs) == axes
    space = transprune.inspect(network, inputs)
    one = transprune.count_macs(network, rebatched(inputs, 1, axes))
    assert (
        space.macs(space.full_architecture()) == space.reading.counted == transprune.count_macs(network, inputs) == one
    )
    smallest = space.smallest_architecture()
    student = transprune.shrink(network, smallest, inputs)
    assert transprune.count_macs(student, inputs) == space.macs(smallest)
    with torch.no_grad():
        assert (
            called(student.eval(), rebatched(inputs, 6, axes)).shape
            == called(network, rebatched(inputs, 6, axes)).shape
        )


class AcrossSamples(nn.Sequential):
    def forward(self, features: Tensor) -> Tensor:
        found = super().forward(features)
        return found - found.mean(0)


@pytest.mark.parametrize(
    ("network", "inputs"),
    [
        (nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)), torch.randn(5, 4, 6)),
        (nn.LSTM(6, 8, batch_first=True), torch.randn(4, 5, 6)),
        (AcrossSamples(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)), torch.randn(4, 6)),
    ],
)
def test_samples_are_counted_along_the_first_axis_otherwise(network, inputs):
    assert sample_axes(network, (inputs,)) == (0,)


def test_a_sequence_first_network_is_searched_and_distilled_along_its_samples():
    task = Task(
        loss=lambda outputs, targets: (outputs - targets).square().mean(),
        metrics={"error": lambda outputs, targets: (outputs - targets).abs().mean(1)},
        sample_axis=1,
    )
    batches = [(torch.randn(5, 8, 6), torch.zeros(8, 3))]
    data = LoaderData(train=batches, test=batches, search=(batches, batches), example=torch.randn(5, 2, 6))
    torch.manual_seed(0)
    found = transprune.search(Recurrent(), data, "macs=0.5", SEARCH, task=task)
    assert found.actual <= found.target
    with pytest.raises(DataError, match="sample_axis"):
        transprune.search(Recurrent(), data, "macs=0.5", SEARCH, task=Task(loss=task.loss))


class TwoOrders(nn.Module):
    """Reads figures [samples, ...] beside sequences [length, samples, ...]."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.other, self.last = nn.Linear(5, 8), nn.GRU(4, 10), nn.Linear(18, 3)

    def forward(self, figures: Tensor, sequences: Tensor) -> Tensor:
        return self.last(torch.cat([self.one(figures), self.other(sequences)[0].mean(0)], -1))


@pytest.mark.parametrize("length", [6, 16])
def test_samples_may_lie_along_another_axis_of_each_input(length):
    torch.manual_seed(0)
    network = TwoOrders()
    batches = [((torch.randn(16, 5), torch.randn(length, 16, 4)), torch.zeros(16, 3)) for _ in range(2)]
    task = Task(loss=lambda outputs, targets: (outputs - targets).square().mean(), split=lambda pair: pair)
    data = LoaderData(train=batches, test=batches, search=(batches, batches), example=batches[0][0])
    small = transprune.compress(network, data, "macs=0.5", task=task)
    assert transprune.count_macs(small.student, batches[0][0]) <= small.space.macs(small.space.full_architecture()) // 2
    assert small.student(*batches[0][0]).shape == (16, 3)
    prior = replace(SEARCH, prior="scores", start="model")
    found = transprune.search(network, data, "macs=0.5", prior, task=task)
    assert found.actual <= found.target


class WithATable(nn.Module):
    """Adds figures [samples, ...] to what all samples share, which comes first and is as long as a batch."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.other, self.last = nn.Linear(5, 8), nn.Linear(8, 10), nn.Linear(10, 3)

    def forward(self, table: Tensor, figures: Tensor) -> Tensor:
        return self.last(self.other(self.one(figures) + table.mean(0)).relu())


class Graph(nn.Module):
    """Takes figures [nodes, ...] and edges [2, edges]; no axis counts samples."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.last = nn.Linear(5, 8), nn.Linear(8, 3)

    def forward(self, nodes: Tensor, edges: Tensor) -> Tensor:
        features = self.one(nodes).relu()
        return self.last(features + torch.zeros_like(features).index_add(0, edges[1], features[edges[0]]))


UNLIKE = {
    "other axes": (TwoOrders, lambda: (torch.randn(16, 5), torch.randn(16, 16, 4))),
    "a table": (WithATable, lambda: (torch.randn(16, 8), torch.randn(16, 5))),
    "a graph": (Graph, lambda: (torch.randn(16, 5), torch.randint(16, (2, 40)))),
}


@pytest.mark.parametrize("verb", ["train", "search"])
@pytest.mark.parametrize("name", UNLIKE)
def test_a_step_in_parts_is_a_whole_step_whatever_the_axes_of_samples(name, verb):
    make, inputs = UNLIKE[name]
    torch.manual_seed(0)
    network = make()
    batches = [(inputs(), torch.randn(16, 3)) for _ in range(2)]
    task = Task(loss=lambda outputs, targets: (outputs - targets).square().mean(), split=lambda pair: pair)
    data = LoaderData(train=batches, test=batches, search=(batches, batches), example=batches[0][0])
    found = []
    for parts in (1, 4):
        if verb == "train":
            options = transprune.TrainingOptions(epochs=1, warm_up_epochs=0, learning_rate=0.1, accumulate=parts)
            found.append(dict(transprune.train(network, data, options, task=task).state_dict()))
        else:
            options = replace(SEARCH, start="model", accumulate=parts)
            found.append(dict(transprune.search(network, data, "macs=0.7", options, task=task).weights))
    assert found[0]
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-6)


class Labels(nn.Module):
    """Returns flags and labels beside figures."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.last = nn.Linear(6, 12), nn.Linear(12, 3)

    def forward(self, inputs: Tensor) -> dict[str, Tensor]:
        figures = self.last(self.one(inputs).relu())
        return {"figures": figures, "label": figures.argmax(-1), "is_sure": figures.softmax(-1).amax(-1) > 0.5}


def test_flags_and_labels_are_outputs_like_any_other(tmp_path):
    torch.manual_seed(0)
    network, inputs = Labels().eval(), torch.randn(4, 6)
    space = transprune.inspect(network, inputs)
    student = transprune.shrink(network, space.smallest_architecture(), inputs)
    assert {name: each.dtype for name, each in student(inputs).items()} == {
        "figures": torch.float32,
        "label": torch.int64,
        "is_sure": torch.bool,
    }
    transprune.export(student, inputs, tmp_path / "student.pt2")


# Hugging Face.


def test_a_bert_is_given_the_encoding_of_its_tokenizer():
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        vocab_size=30, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24
    )
    network = transformers.BertForSequenceClassification(config).eval()
    encoding = transformers.BatchEncoding(
        {"input_ids": torch.randint(1, 30, (2, 7)), "attention_mask": torch.ones(2, 7, dtype=torch.int64)}
    )
    space = transprune.inspect(network, encoding)
    assert space.macs(space.full_architecture()) == space.reading.counted
    smallest = space.smallest_architecture()
    student = transprune.shrink(network, smallest, encoding)
    assert transprune.count_macs(student, encoding) == space.macs(smallest)
    assert student(**encoding).logits.shape == (2, 2)
    batches = [{"inputs": encoding, "targets": torch.zeros(2, 2)}]
    data = LoaderData(train=batches, test=batches, search=(batches, batches), example=encoding)
    found = transprune.search(network, data, "macs=0.5", SEARCH, space=space, task=TASK)
    assert found.actual <= found.target
