"""A way to each error that the library raises: functions of an empty folder, one for each place in the code."""

from __future__ import annotations

import errno
import io
import json
import os
import pickle
import shutil
import sys
import threading
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from unittest import mock
from urllib.error import URLError

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F
from torch.nn.attention.flex_attention import flex_attention
from torch.utils.data import TensorDataset

import oracles
import transprune
import transprune.runs
from fake_run import fake_run
from hard_networks import FlattenedToANumber
from scene_folders import write_coco, write_yolo
from small_networks import ConvNorm, example, plain, staged
from transprune import space as spaces
from transprune.architecture import Architecture
from transprune.budget import Budget, Limit, points
from transprune.cli.arguments import read_command
from transprune.cli.commands import CompareCommand, ExportCommand, InspectCommand
from transprune.cli.jobs import refuse_frontier
from transprune.costs import MACS, PARAMS, Channels
from transprune.data import (
    Augmentation,
    ImageData,
    LoaderData,
    MemorySplit,
    held,
    load_data,
    make_loader,
    split_halves,
)
from transprune.data.scenes import load_scenes
from transprune.data.texts import load_texts
from transprune.exports.formats import check_agreement, check_pt2, export_program, onnx_bytes, pt2_bytes, quantised_onnx
from transprune.exports.runtimes import RUNTIMES, ExecuTorch, OpenVino, check_files, find_runtime
from transprune.latency import measurement, stopwatch
from transprune.latency.backends import make_backend, network_onnx
from transprune.latency.latency_model import LatencyModel, Validation
from transprune.latency.measurement import file_size, load_model
from transprune.latency.performance import quantise
from transprune.latency.timed_operators import operators_of
from transprune.models.by_name import build_model, pretrained
from transprune.models.hugging_face import Origin
from transprune.models.resnet import ResNetShape, resnet_from_torchvision
from transprune.models.weights import load_weights
from transprune.options import CheckpointOptions, CompressOptions, LatencyOptions, MeasureOptions
from transprune.reading.inspection import inspect
from transprune.reading.reading import read
from transprune.reading.rules import RULES
from transprune.reports.run_record import read_record
from transprune.reports.watch import watch_server
from transprune.runs import RunOptions, Tracking, open_run, plan_run, prepare, resume_run
from transprune.runs.compression import _plan_of, _probabilities, derive_run, find_budget
from transprune.runs.material import _check_images, collect, data_of, detector_of, known_file_size, task_of
from transprune.runs.phases import load_teacher
from transprune.runs.run_options import preset_options, read_config
from transprune.runs.steps import teach_step
from transprune.runtime import (
    Checkpoints,
    FolderLock,
    Journal,
    RunFolder,
    choose_device,
    interruption,
    processes,
    read_journal,
)
from transprune.runtime.tensors import encode_tree
from transprune.tas.baselines import uniform_architecture
from transprune.tas.derivation import check_attainable, derive
from transprune.tas.sampling import Selection, draw_candidates
from transprune.tas.supernet import Supernet
from transprune.training import batches
from transprune.training.detection import average_precisions
from transprune.training.evaluation import evaluate, evaluate_batches
from transprune.training.tasks import (
    Metric,
    Task,
    classification,
    last_is_target,
    multi_label,
    regression,
    token_classification,
)
from transprune.training.train import softening
from transprune.training.update import optimizer_of
from yolo_like import Detector, Handle, library

WAYS: dict[str, Callable[[Path], object]] = {}
"""By name; each raises one error."""


def way(function: Callable[[Path], object]) -> Callable[[Path], object]:
    WAYS[function.__name__.strip("_")] = function
    return function


def ways(**named: Callable[[Path], object]) -> None:
    WAYS.update(named)


# --- budgets and spaces -----------------------------------------------------------------------------------------

SPACE = inspect(staged(), example())
BRANCHES = replace(
    SPACE,
    stages=(
        spaces.DepthStage(
            name="blocks",
            depth=4,
            candidates=(1, 2, 3, 4),
            blocks=("blocks.0.a", "blocks.0.b", "blocks.1.a", "blocks.1.b"),
            outputs=(Channels(4),) * 4,
            parts=(("blocks.0.a",), ("blocks.0.b",), ("blocks.1.a",), ("blocks.1.b",)),
        ),
    ),
)
UNIFORM = oracles.random_probabilities(SPACE, seed=0)

ways(
    budget_kind=lambda _: Budget("flops", 0.5, is_share=True),
    budget_amount=lambda _: Budget("macs", 1.5, is_share=True),
    budget_text=lambda _: Budget.parse("half of it"),
    budget_unmeasured=lambda _: Budget.parse("file=64KB").limit(SPACE),
    budget_cache=lambda _: Budget.parse("cache=0.5").limit(SPACE),
    budget_of_widths=lambda _: transprune.uniform_architecture(SPACE, 0.5),
    segmentation_shapes=lambda _: transprune.segmentation(3).loss(torch.zeros(2, 3), torch.zeros(2, dtype=torch.int64)),
    time_nothing=lambda _: transprune.measure_latencies({}, example()),
    classes_one=lambda _: transprune.classification().loss(torch.zeros(8, 1), torch.zeros(8, dtype=torch.int64)),
    measured_nothing=lambda _: evaluate_batches(plain(), [], transprune.classification()),
    budget_number=lambda _: transprune.search(plain(), None, 0.5),
    example_size=lambda _: transprune.inspect(plain(), (1, 3, 8, 8)),
    budget_flops=lambda _: Budget.parse("flops=40M"),
    budget_time=lambda _: Budget.parse("latency=4"),
    budget_none=lambda _: transprune.search(plain(), None, []),
    budget_twice=lambda _: transprune.search(plain(), None, ["macs=0.5", "macs=0.4"]),
    budget_unattainable=lambda _: Budget.parse("macs=0.001").limit(SPACE),
    budget_loose=lambda _: Budget.parse("macs=1M").limit(SPACE),
    derive_too_little=lambda _: derive(SPACE, UNIFORM, [Limit(MACS, 0)]),
    budgets_together=lambda _: check_attainable(
        SPACE, [Limit(cost, SPACE.cost(cost, SPACE.smallest_architecture()) - 1) for cost in (MACS, PARAMS)]
    ),
    frontier_kinds=lambda _: points(["macs=0.3,0.5", "params=0.3,0.5"]),
    frontier_comma=lambda _: points(["macs=0,35"]),
    frontier_thousands=lambda _: points(["macs=1,000,000"]),
    frontier_same=lambda _: points(["macs=0.5,0.5"]),
    uniform_too_little=lambda _: uniform_architecture(SPACE, [Limit(MACS, 1)]),
    architecture_size=lambda _: Architecture(widths={"stem": 0}),
    architecture_text=lambda _: Architecture.from_json("{"),
    architecture_part=lambda _: Architecture.from_json({"widths": {}}),
    space_newer=lambda _: spaces.SearchSpace.from_json({"format": 99}),
    space_format=lambda _: spaces.SearchSpace.from_json({"format": "old"}),
    space_malformed=lambda _: spaces.SearchSpace.from_json({"format": 2, "groups": 1}),
    architecture_unknown=lambda _: SPACE.check(Architecture(widths={"nowhere": 3})),
    architecture_blocks=lambda _: Architecture(depths={"body.1": 2}, blocks={"body.1": ("body.1.0",)}),
    architecture_blocks_text=lambda _: Architecture.from_json('{"widths": {}, "depths": {}, "blocks": {"body.1": 2}}'),
    architecture_block_unknown=lambda _: SPACE.check(Architecture(blocks={"body.1": ("body.1.7",)})),
    architecture_block_stuck=lambda _: SPACE.check(Architecture(blocks={"body.1": ("body.1.1",)})),
    architecture_branches=lambda _: BRANCHES.check(Architecture(depths={"blocks": 2})),
    order_of_blocks=lambda _: SPACE.ordered({"body.1": (1, 0)}),
    selected_blocks=lambda _: Selection.of(SPACE, Architecture(blocks={"body.1": ("body.1.1",)})),
    architecture_too_deep=lambda _: SPACE.check(Architecture(depths={SPACE.stages[0].name: 9})),
)


def _read_by(rule: Callable[[transprune.Call], object]) -> None:
    """Reads a network whose only operator has a rule of the user's."""
    with mock.patch.dict(RULES):
        transprune.register_rule("rot90", rule)
        inspect(Turning(), example())


def _other_axis(call: transprune.Call) -> list[object]:
    axes = call.axes("self")
    call.add_layer("linear", inputs=axes[1], outputs=axes[1], weight=None)
    return axes


class Turning(nn.Module):
    def forward(self, images):
        return torch.rot90(images, 2, (2, 3))


ways(
    rule_of_nothing=lambda _: transprune.register_rule(torch.relu, lambda call: []),
    rule_unknown=lambda _: transprune.register_rule("rot91", lambda call: []),
    rule_twice=lambda _: transprune.register_rule("linear", lambda call: []),
    rule_arguments=lambda _: transprune.register_rule("rot90", lambda: None),
    rule_axes=lambda _: _read_by(lambda call: call.axes("self")[:2]),
    rule_along=lambda _: _read_by(_other_axis),
)


ways(
    scores_newer=lambda _: transprune.Scores.from_json({"format": 99}),
    scores_format=lambda _: transprune.Scores.from_json({"format": "old"}),
    scores_malformed=lambda _: transprune.Scores.from_json({"format": 1, "groups": 1}),
    scores_space=lambda _: transprune.score(plain(), SPACE, example()),
    scores_measure=lambda _: transprune.score(staged(), SPACE, example(), measure=lambda evidence: {}),
)


class Configuration:
    """As that of a network of transformers."""

    def __init__(self) -> None:
        self.width = 8

    def to_dict(self):
        return vars(self)


class Configured(nn.Module):
    def __init__(self, config: Configuration) -> None:
        super().__init__()
        self.config = config
        self.first, self.last = nn.Conv2d(3, config.width, 3), nn.Conv2d(config.width, 5, 3)

    def forward(self, images):
        return self.last(self.first(images))


class Unbuildable(Configured):
    def __init__(self, config: Configuration, more: int) -> None:
        super().__init__(config)


def configured_wrongly(tie) -> nn.Module:
    model = Configured(Configuration())
    space = inspect(model, example(), tie=tie)
    return transprune.configured(model, model, space, space.smallest_architecture())


ways(
    inspect_configured_branches=lambda _: inspect(plain(), example(), tie="config", removable="branches"),
    inspect_tied_twice=lambda _: inspect(plain(), example(), tie=["*", "0"]),
    configuration_missing=lambda _: inspect(plain(), example(), tie="config"),
    configuration_building=lambda _: inspect(Unbuildable(Configuration(), 1), example(), tie="config"),
    configuration_untied=lambda _: configured_wrongly(()),
    configuration_other=lambda _: configured_wrongly("config"),
)


class Branching(nn.Module):
    def forward(self, images):
        return images if images.sum() > 0 else -images


def traced_student() -> nn.Module:
    """A network that runs traced operators."""
    return transprune.shrink(FlattenedToANumber(), Architecture(widths={"conv": 3}), example())


class Dividing(nn.Module):
    """Divides by the number of samples."""

    def __init__(self) -> None:
        super().__init__()
        self.inside, self.outside = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 5, 3)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.outside(self.inside(images) / images.shape[0])


class OneByOne(Dividing):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return torch.vmap(lambda image: self.outside(self.inside(image)))(images)


class UpToTwelve(Dividing):
    """Has a shift for each of twelve samples."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("shifts", torch.zeros(12, 1, 1, 1))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.outside(self.inside(images) + self.shifts[: len(images)])


class Undecided(nn.Module):
    """Runs its layers once more than torch.export sees."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(8, 24, bias=False), nn.Linear(24, 12, bias=False))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        result = self.layers(images)
        return result if torch.compiler.is_compiling() else result + self.layers(images)


class Locked(nn.Linear):
    def __init__(self) -> None:
        super().__init__(2, 2)
        self.lock = threading.Lock()


class Remembering(nn.Linear):
    def get_extra_state(self):
        return {"steps": 3}

    def set_extra_state(self, state):
        pass


class Grouped(nn.Sequential):
    def parameters(self, recurse=True):
        return iter([{"params": list(super().parameters()), "lr": 0.1}])


class Later(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = ConvNorm(3, 8)

    def forward(self, images):
        return (features for features in [self.conv(images)])


class Either(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(8, 8), nn.Linear(8, 2)

    def forward(self, rows):
        return torch.cond(rows.sum() > 0, self.last, lambda given: -self.last(given), (self.first(rows),))


class Flexible(nn.Module):
    def forward(self, heads):
        return flex_attention(heads, heads, heads)


class Sometimes(nn.Module):
    """Reads its second layer where there are many tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(3, 8), nn.Linear(8, 8), nn.Linear(8, 2)

    def forward(self, tokens):
        hidden = self.first(tokens)
        return self.head(self.second(hidden) if tokens.shape[1] > 6 else hidden)


def longer_than_the_example():
    network, example = Sometimes(), torch.zeros(2, 5, 3)
    space = inspect(network, example)
    return Supernet(network, space, example)(Selection.of(space, space.full_architecture()), torch.zeros(4, 9, 3))


class Counting(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.head = ConvNorm(3, 8), nn.Linear(8, 5)

    def forward(self, images):
        features = self.conv(images)
        return self.head(features[features > 0].view(1, -1)[:, :8])


ways(
    inspect_removable=lambda _: inspect(plain(), example(), removable="halves"),
    inspect_dimensions=lambda _: inspect(plain(), example(), dimensions="height"),
    inspect_ratios=lambda _: inspect(plain(), example(), ratios=(2.0,)),
    inspect_nothing=lambda _: inspect(nn.Sequential(nn.Flatten(), nn.Linear(192, 5)), example()),
    inspect_depths=lambda _: inspect(staged(), example(), depths=lambda depth: (0, depth)),
    inspect_patterns=lambda _: inspect(plain(), example(), keep="stem"),
    inspect_pattern=lambda _: inspect(plain(), example(), keep=["nowhere"]),
    wrappers_jit=lambda _: inspect(torch.jit.script(nn.Linear(2, 2)), torch.zeros(1, 2)),
    trace_structure=lambda _: transprune.read(plain(), example()).trace.tensors_of(([example()],)),
    search_frozen=lambda _: transprune.search(plain().requires_grad_(False), in_two([(example(), LABELS)]), "macs=0.5"),
    sample_axis=lambda _: transprune.classification().check_axis((1, 1)),
    trace_example=lambda _: inspect(plain(), torch.zeros(1, 1, 8, 8)),
    trace_branch=lambda _: inspect(Branching(), example()),
    trace_counts=lambda _: inspect(Counting(), example()),
    macs_differ=lambda _: inspect(Undecided(), torch.zeros(1, 8)),
    copy_fails=lambda _: inspect(nn.Sequential(Locked(), Locked()), torch.zeros(1, 2)),
    lazy=lambda _: inspect(nn.Sequential(nn.LazyLinear(2)), torch.zeros(1, 2)),
    trace_samples=lambda _: inspect(Dividing(), example()),
    extra_state=lambda _: inspect(nn.Sequential(Remembering(2, 2)), torch.zeros(1, 2)),
    told_otherwise=lambda _: inspect(Grouped(nn.Linear(2, 2)), torch.zeros(1, 2)),
    writes_inputs=lambda _: inspect(nn.Sequential(nn.ReLU(inplace=True), nn.Linear(2, 2)), torch.ones(1, 2)),
    example_sparse=lambda _: inspect(plain(), example().to_sparse()),
    example_meta=lambda _: inspect(plain(), example().to("meta")),
    derive_fill=lambda _: transprune.random_architecture(inspect(plain(), example()), "macs=0.5", seed=0, fill=2.0),
    example_empty=lambda _: inspect(plain(), example()[:0]),
    trace_no_tensor=lambda _: inspect(Later(), example()),
    trace_hands_on=lambda _: inspect(Either(), torch.zeros(2, 8)),
    macs_unwatched=lambda _: transprune.count_macs(Flexible(), torch.zeros(1, 2, 4, 8)),
    trace_functions=lambda _: inspect(OneByOne(), example()),
    score_samples=lambda _: transprune.compress(UpToTwelve(), torch.zeros(32, 3, 8, 8), "macs=0.5"),
    traced_size=lambda _: traced_student()(torch.zeros(1, 3, 16, 16)),
    traced_pickle=lambda _: pickle.dumps(traced_student()),
    shrink_weights=lambda _: transprune.shrink(plain(), Architecture(), example(), weights="new"),
    sort_importance=lambda _: transprune.sort_channels(plain(), example(), lambda weights, width: torch.zeros(3)),
    supernet_alignment=lambda _: Supernet(plain(), inspect(plain(), example()), example(), alignment="stretch"),
    supernet_sizes=lambda _: longer_than_the_example(),
    supernet_space=lambda _: Supernet(plain(), SPACE, example()),
    sampling=lambda _: draw_candidates(torch.zeros(1, 2), torch.ones(1, 2).bool(), temperature=0.0, samples=2),
)


@way
def shrink_wider(_):
    class Joined(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(3, 4, 3, padding=1)
            self.next, self.head = nn.Conv2d(8, 4, 1), nn.Linear(4, 5)

        def forward(self, images):
            joined = torch.cat([self.one(images), self.two(images)], 1)
            return self.head(self.next(joined).mean((2, 3)))

    transprune.shrink(Joined(), Architecture(widths={"one": 6}), example())


# --- models -----------------------------------------------------------------------------------------------------


def build(name, channels=3):
    return build_model(name, classes=5, image_channels=channels)


def own(code, call="build", name="net.py"):
    """A model in a file of the user's."""

    def provoke(place):
        (place / name).write_text(code)
        build(f"{place / name}:{call}")

    return provoke


def _unreached(place):
    """Published weights that are in no cache, on a machine that reaches nothing."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TORCH_HOME", str(place))
        patch.setattr(torch.hub, "download_url_to_file", _no_connection)
        pretrained("torchvision:resnet18", image_channels=3)


def _no_connection(*_, **__):
    raise OSError("Name or service not known")


ways(
    model_unknown=lambda _: build("resnet21"),
    model_weights=lambda _: build("net.pth"),
    pretrained_none=lambda _: pretrained("resnet20", image_channels=3),
    pretrained_unreached=_unreached,
    model_torchvision=lambda _: build("torchvision:resnet19"),
    model_torchvision_grey=lambda _: build("torchvision:resnet18", channels=1),
    model_timm=lambda _: build("timm:resnet10tt"),
    model_timm_fails=lambda _: build("timm:vit_tiny_patch16_224", channels="x"),
    resnet_depth=lambda _: transprune.resnet(21),
    resnet_block=lambda _: ResNetShape.from_paper("wide", [3, 16], blocks=[1], style="cifar"),
    resnet_widths=lambda _: ResNetShape.from_paper("basic", [3, 16], blocks=[1], style="cifar"),
    resnet_narrow=lambda _: ResNetShape.from_paper("basic", [3, 16, 0, 1], blocks=[1], style="cifar"),
    torchvision_resnet=lambda _: resnet_from_torchvision(nn.Linear(2, 2)),
    own_form=lambda _: build("net.py:"),
    own_no_file=lambda place: build(f"{place}/net.py:build"),
    own_no_module=lambda _: build("no_such_module:build"),
    own_no_function=own("def create():\n    pass\n"),
    own_returns=own("def build():\n    return 3\n"),
    own_fails=own("def build():\n    raise KeyError('depth')\n"),
    own_precision=own("from torch import nn\ndef build():\n    return nn.Linear(2, 3).half()\n"),
)


@way
def model_no_timm(_):
    with mock.patch.dict(sys.modules, {"timm": None}):
        build("timm:resnet10t")


def hugging_face(act, write="write_language_model", **changes):
    """Acts on the name of a folder of transformers with something changed."""

    def provoke(place):
        import hugging_face_folders

        folder = getattr(hugging_face_folders, write)(place / "net")
        act(hugging_face_folders.changed(folder, **changes))

    return provoke


def refused_by_hub(name):
    def provoke(_):
        import hugging_face_folders

        error = getattr(hugging_face_folders, name)("refused")
        with mock.patch("transformers.AutoConfig.from_pretrained", side_effect=error):
            build("hf:own/name")

    return provoke


def stock(name):
    import transformers

    return transformers.LlamaForCausalLM.from_pretrained(name.removeprefix("hf:"))


def written(name, folder="small", **changes):
    tokens = torch.zeros(1, 4, dtype=torch.long)
    transprune.export_pretrained(stock(name), Path(name.removeprefix("hf:")) / folder, tokens, origin=name, **changes)


def written_apart(name):
    with mock.patch("transprune.models.hugging_face.CLOSE", -1.0):
        written(name)


def written_to_hub(name):
    with mock.patch("huggingface_hub.HfApi", side_effect=OSError("no network")):
        written(name, push_to_hub="me/small")


def without_transformers(_):
    with mock.patch.dict(sys.modules, {"transformers": None}):
        build("hf:own/name")


def untied_run(place):
    run = SimpleNamespace(options=SimpleNamespace(tie=()), folder=SimpleNamespace(path=place))
    transprune.runs.export_pretrained_step(run, place / "small")


def texts(spec, **changes):
    """Loads texts of the place by the tokenizer of a small language model."""

    def provoke(place):
        import hugging_face_folders

        (place / "data").mkdir()
        (place / "data" / "some.txt").write_bytes(changes.pop("content", b"A cat."))
        folder = hugging_face_folders.write_language_model(place / "net")
        given = {"task": "causal-lm", "length": 16, "batch_size": 4, **changes}
        load_texts(spec.format(place), Origin(f"hf:{folder}").tokenizer(), **given)

    return provoke


def without_datasets(_):
    with mock.patch.dict(sys.modules, {"datasets": None}):
        load_texts("hf-dataset:some", None, task="causal-lm", length=8, batch_size=4)


def texts_without_tokenizer(_):
    data_of(replace(preset_options("quick"), model="net.py:build", data="text:some.txt"))


ways(
    texts_task=texts("text:{}/data", task="regression"),
    texts_length=texts("text:{}/data", length=1),
    texts_short=texts("text:{}/data"),
    texts_missing=texts("text:{}/nothing"),
    texts_encoding=texts("text:{}/data", content=b"\xff\xfe"),
    texts_empty=texts("text:{}/data", content=b" "),
    texts_library=without_datasets,
    texts_data_set=texts("hf-dataset:{}/nothing"),
    texts_column=texts("text:{}/data", task="text-classification"),
    texts_tokenizer=texts_without_tokenizer,
    hf_library=without_transformers,
    hf_gated=refused_by_hub("GatedRepoError"),
    hf_missing=refused_by_hub("RepositoryNotFoundError"),
    hf_channels=hugging_face(lambda name: build(name, channels=3), "write_image_classifier"),
    hf_class=hugging_face(build, config={"architectures": None}),
    hf_pickled=hugging_face(
        lambda name: pretrained(name, image_channels=3), without="model.safetensors", pytorch_model__bin="x"
    ),
    hf_empty=hugging_face(lambda name: pretrained(name, image_channels=3), without="model.safetensors"),
    hf_damaged=hugging_face(lambda name: pretrained(name, image_channels=3), model__safetensors="x"),
    hf_tokenizer=hugging_face(lambda name: Origin(name).tokenizer(100)),
    hf_onto_origin=hugging_face(lambda name: written(name, ".")),
    hf_apart=hugging_face(written_apart),
    hf_upload=hugging_face(written_to_hub),
    hf_kind=lambda place: transprune.export_pretrained(plain(), place, example()),
    hf_untied=untied_run,
    hf_upload_alone=lambda _: ExportCommand(run="runs/x", push_to_hub="me/small")(),
    labels_missing=lambda _: transprune.evaluate(
        plain(), LoaderData(train=[BATCH], test=[BATCH], example=example()), task=transprune.text_classification()
    ),
    labels_of_tokens=lambda _: token_classification().loss(torch.zeros(2, 3), torch.zeros(3, dtype=torch.long)),
)


PICTURE, SQUARE, ONE = torch.rand(3, 64, 64), torch.tensor([[2.0, 2, 20, 20]]), torch.tensor([1])


def yolo_task(**named):
    detector = Detector()
    vars(detector).update(named)
    return transprune.detection(transprune.part_of(detector, ([PICTURE],)))


def named_yolo(model, classes=None):
    """Builds the network of `best.pt` where ultralytics, if any, reads this from it."""

    def provoke(_):
        modules = {"ultralytics": None} if model is None else library(model)
        with mock.patch.dict(sys.modules, modules):
            build_model("ultralytics:best.pt", classes=classes, image_channels=3)

    return provoke


def scenes(write, after=lambda _: None, size=None, **changes):
    """Loads images with boxes from a folder that is written, and then changed, in the place."""

    def provoke(place):
        after(write(place, **changes))
        load_scenes(f"{write.__name__.removeprefix('write_')}:{place}", image_size=size)

    return provoke


def coco_file(content):
    """Puts another file in the place of the annotations to learn from."""
    return lambda place: (place / "annotations" / "instances_train2017.json").write_text(content)


IMAGES = '"images": [{"id": 1, "file_name": "0.png", "width": 48, "height": 32}'
OTHER_NAMES = f'{{{IMAGES}], "annotations": [], "categories": [{{"id": 1, "name": "b"}}]}}'
TWICE = f'{{{IMAGES}, {IMAGES[11:]}], "annotations": [], "categories": [{{"id": 1, "name": "a"}}]}}'


def deep():
    return Image.fromarray(np.zeros((32, 48), np.uint16))


def without_yaml(place):
    with mock.patch.dict(sys.modules, {"yaml": None}):
        scenes(write_yolo)(place)


def detecting(place, data="coco:{}", task="detection", model="net.py:build"):
    write_coco(place)
    detector_of(replace(preset_options("quick"), model=model, data=data.format(place), task=task))


def detecting_odd_batches(place):
    (place / "net.py").write_text("import torch\ndef data():\n    return [torch.zeros(2)], [torch.zeros(2)]\n")
    detecting(place, data="{}/net.py:data")


ANNOTATIONS = "annotations/instances_train2017.json"
ways(
    scenes_folder=lambda place: load_scenes(f"coco:{place}/none"),
    scenes_channels=scenes(write_coco, size=(1, 32, 32)),
    scenes_empty=scenes(write_coco, count=1, iscrowd=1),
    scenes_image=scenes(write_yolo, lambda place: (place / "images" / "train" / "0.png").write_text("no image")),
    scenes_box=scenes(write_coco, bbox=[40, 4, 16, 8]),
    scenes_order=scenes(write_coco, bbox=[24, 4, -16, 8]),
    scenes_parts=scenes(write_coco, lambda place: (place / ANNOTATIONS).unlink()),
    scenes_image_unknown=scenes(write_coco, image_id=99),
    scenes_category=scenes(write_coco, category_id=9),
    scenes_malformed=scenes(write_coco, coco_file('{"images": []}')),
    scenes_nothing=scenes(write_coco, coco_file('{"images": [], "annotations": [], "categories": []}')),
    scenes_image_lost=scenes(write_coco, lambda place: (place / "train" / "2.png").unlink()),
    scenes_size=scenes(write_coco, lambda place: Image.new("RGB", (9, 9)).save(place / "val" / "1.png")),
    scenes_no_file=scenes(
        write_coco, lambda place: ((place / ANNOTATIONS).unlink(), (place / ANNOTATIONS).mkdir(parents=True))
    ),
    scenes_categories=scenes(write_coco, coco_file(OTHER_NAMES)),
    scenes_twice=scenes(write_coco, coco_file(TWICE)),
    scenes_number=scenes(
        write_coco, coco_file('{"images": [], "annotations": [], "categories": [{"id": -1, "name": ""}]}')
    ),
    scenes_several=scenes(
        write_coco, lambda place: (place / "annotations" / "instances_train2014.json").write_text("{}")
    ),
    scenes_deep=scenes(write_yolo, lambda place: deep().save(place / "images" / "train" / "0.png")),
    yolo_names=scenes(write_yolo, described="train: images/train\nval: images/val\nnames: 2\n"),
    yolo_classes=named_yolo(Detector(), classes=5),
    yolo_kind=named_yolo("weights"),
    yolo_labels=lambda _: yolo_task().split(([PICTURE], [{"boxes": SQUARE, "labels": torch.tensor([3])}])),
    yolo_handle=lambda _: inspect(Handle(), PICTURE[None]),
    yolo_half=lambda _: inspect(transprune.part_of(Detector().half(), ([PICTURE],)), PICTURE[None]),
    yolo_stride=lambda _: inspect(transprune.part_of(Detector(), ([PICTURE],)), PICTURE[None, :, :62]),
    yolo_missing=named_yolo(None),
    yolo_parts=scenes(write_yolo, described="train: images/train\nnames: [a, b]\n"),
    yolo_sizes=lambda _: yolo_task().split(([PICTURE, PICTURE[:, :32]], [{"boxes": SQUARE, "labels": ONE}] * 2)),
    yolo_task=lambda _: yolo_task(task="segment"),
    yolo_unreadable=named_yolo(FileNotFoundError("best.pt")),
    yolo_library=without_yaml,
    yolo_no_yaml=scenes(write_yolo, lambda place: (place / "data.yaml").unlink()),
    yolo_no_yaml_inside=scenes(write_yolo, described="train: [images\n"),
    yolo_list=scenes(write_yolo, described="- a\n"),
    yolo_no_part=scenes(write_yolo, described="train: pictures\nval: images/val\nnames: [a, b]\n"),
    yolo_no_images=scenes(write_yolo, described="train: labels/train\nval: images/val\nnames: [a, b]\n"),
    yolo_class=scenes(write_yolo, line="0 0.5 0.5 0.1 0.1\n2 0.5 0.5 0.1 0.1\n"),
    yolo_pixels=scenes(write_yolo, line="0 24 16 8 8\n"),
    yolo_line=scenes(write_yolo, line="0 0.5 0.5 0.1\n"),
    yolo_encoding=scenes(write_yolo, lambda place: (place / "labels" / "train" / "0.txt").write_bytes(b"\xff\xfe0")),
    detection_data=lambda place: detecting(place, data="digits"),
    detection_batches=detecting_odd_batches,
    detection_task=lambda place: data_of(
        replace(preset_options("quick"), model="net.py:build", data=f"coco:{place}", task=None)
    ),
    detection_masks=lambda place: detecting(place, model="torchvision:maskrcnn_resnet50_fpn"),
)


LINEAR = {"weight": torch.zeros(3, 2), "bias": torch.zeros(3)}


def weights(content, name="w.pth", key=""):
    def provoke(place):
        (save_file if name.endswith(".safetensors") else torch.save)(content, place / name)
        load_weights(f"{place / name}{key}", nn.Linear(2, 3))

    return provoke


def text_weights(name):
    def provoke(place):
        (place / name).write_text("not tensors")
        load_weights(place / name, nn.Linear(2, 3))

    return provoke


ways(
    weights_folder=lambda place: load_weights(place, nn.Linear(2, 3)),
    weights_missing=lambda place: load_weights(place / "w.pth", nn.Linear(2, 3)),
    weights_nothing=weights({"other": torch.zeros(2)}),
    weights_misfit=weights({"weight": torch.zeros(3, 2), "bias": torch.zeros(4)}, "w.safetensors"),
    weights_kind=text_weights("w.bin"),
    weights_no_state=weights([1, 2]),
    weights_damaged=text_weights("w.safetensors"),
    weights_code=weights(nn.Linear(2, 3)),
    weights_several=weights({"params": LINEAR, "params_ema": {name: 1 + LINEAR[name] for name in LINEAR}}),
    weights_no_key=weights({"params": LINEAR}, key=":params_ema"),
    weights_not_finite=weights({"weight": torch.full((3, 2), torch.nan), "bias": torch.zeros(3)}),
)

# --- data -------------------------------------------------------------------------------------------------------


def images(place, *, classes=("cat", "dog"), parts=("train", "val"), count=2):
    for part in parts:
        for name in classes:
            (place / part / name).mkdir(parents=True)
            for number in range(count):
                Image.fromarray(np.full((8, 8, 3), 40 * number, dtype=np.uint8)).save(
                    place / part / name / f"{number}.png"
                )
    return place


def table_of_images(place):
    shutil.rmtree(place / "train")
    (place / "train.csv").write_text("file,label\nval/cat/0.png,cat\nval/cat/0.png,dog\n")


def image_folder(change):
    def provoke(place):
        change(images(place))
        load_data(f"imagefolder:{place}")

    return provoke


def table(path, labels, *, names=None, kind=None, cell=None):
    buffer = io.BytesIO()
    Image.fromarray(np.zeros((8, 8, 3), dtype=np.uint8)).save(buffer, "PNG")
    cells = [{"bytes": cell if cell and not number else buffer.getvalue()} for number, _ in enumerate(labels)]
    struct = pa.struct([("bytes", kind or pa.binary())])
    content = pa.table({"image": pa.array(cells, struct), "label": pa.array(labels, pa.int64())})
    if names:
        features = {"label": {"names": names, "_type": "ClassLabel"}}
        content = content.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    pq.write_table(content, path)


def tables(train=(0, 1), test=(0, 1), *, train_names=None, test_names=None, name="train.parquet"):
    def provoke(place):
        table(place / name, list(train), names=train_names)
        table(place / "test.parquet", list(test), names=test_names)
        load_data(f"parquet:{place}")

    return provoke


@way
def parquet_damaged(place):
    for name in ("train.parquet", "test.parquet"):
        (place / name).write_text("not parquet")
    load_data(f"parquet:{place}")


@way
def parquet_columns(place):
    for name in ("train.parquet", "test.parquet"):
        pq.write_table(pa.table({"label": [0, 1]}), place / name)
    load_data(f"parquet:{place}")


@way
def cifar_download(place):
    from torchvision.datasets import CIFAR10

    with mock.patch.object(CIFAR10, "download", side_effect=URLError("no route to host")):
        load_data(f"cifar10:{place}", download=True)


def few(labels=(0, 1), *, pixels=None, channels=1, mean=(0.5,), classes=("a", "b")):
    pixels = torch.zeros(len(labels), channels, 4, 4, dtype=torch.uint8) if pixels is None else pixels
    split = MemorySplit(pixels, labels if isinstance(labels, torch.Tensor) else torch.tensor(labels, dtype=torch.int64))
    return ImageData(
        name="few",
        train=split,
        test=split,
        classes=classes,
        image_size=(len(mean), 4, 4),
        mean=mean,
        std=(0.5,) * len(mean),
        augmentation=Augmentation(),
    )


def load_some(split, **options):
    return make_loader(split, few(), **{"batch_size": 2, "train": True, "seed": 0, "device": "cpu"} | options)


ways(
    augment_jitter=lambda _: Augmentation(colour_jitter=(2.0, 0.0, 0.0, 0.0)),
    augment_pad=lambda _: Augmentation(pad=-1),
    augment_both=lambda _: Augmentation(pad=1, resized_crop=True),
    image_unreadable=image_folder(lambda place: (place / "train/cat/0.png").write_text("no image")),
    folder_no_train=image_folder(lambda place: shutil.rmtree(place / "train")),
    folder_table=image_folder(table_of_images),
    folder_no_classes=image_folder(lambda place: [shutil.rmtree(place / "train" / name) for name in ("cat", "dog")]),
    folder_other_classes=image_folder(lambda place: (place / "val/dog").rename(place / "val/cow")),
    folder_empty_class=image_folder(lambda place: [path.unlink() for path in (place / "train/dog").iterdir()]),
    loader_options=lambda _: load_some(few().train, batch_size=0),
    loader_empty=lambda _: load_some(few().train.subset([])),
    loader_kind=lambda _: load_some([1, 2]),
    loaders_no_batch=lambda _: LoaderData(train=[], test=[1], example=torch.zeros(1)),
    loaders_example=lambda _: LoaderData(train=[1], test=[1], example=({"x": 1},)),
    loaders_once=lambda _: LoaderData(train=iter([1]), test=[1], example=torch.zeros(1)),
    loaders_indivisible=lambda _: transprune.search(plain(), stream([1]), "macs=0.5"),
    parquet_none=lambda place: load_data(f"parquet:{place}"),
    parquet_shards=tables(name="train-00000-of-00002.parquet"),
    parquet_names=tables(train_names=["a", "b"], test_names=["a", "c"]),
    parquet_absent=tables(train=(0, 2)),
    parquet_label=tables(test=(0, 5)),
    parquet_empty=tables(train=()),
    parquet_no_label=tables(train=(0, None, 1)),
    data_size=lambda _: load_data("digits", image_size=(2, 8, 8)),
    data_no_folder=lambda place: load_data(f"imagefolder:{place}/none"),
    data_unknown=lambda _: load_data("digit"),
    data_no_place=lambda _: load_data("cifar10"),
    data_place=lambda _: load_data("digits:here"),
    plan_download=lambda place: plan_run(options(data=f"cifar10:{place}", download=True), place / "run"),
    cifar_missing=lambda place: load_data(f"cifar10:{place}"),
    split_fraction=lambda _: split_halves(few().train, fraction=1.0, seed=0),
    split_empty=lambda _: split_halves(few([0]).train, seed=0),
    split_labels=lambda _: MemorySplit(torch.zeros(2, 1, 4, 4, dtype=torch.uint8), torch.zeros(2)),
    split_pixels=lambda _: few(pixels=torch.zeros(2, 1, 4, 4)),
    data_statistics=lambda _: load_data("digits", mean="mnist"),
    data_augmentation=lambda _: load_data("digits", augmentation="shfit"),
    data_mean_of_255=lambda _: load_data("digits", mean=127, std=127),
    loaders_no_sample=lambda _: batches.as_data((TensorDataset(torch.zeros(0, 3)),) * 2, classification()),
    data_mean=lambda _: ImageData(**{**vars(few()), "mean": (0.5, 0.5)}),
    data_channels=lambda _: few(channels=4, mean=(0.5, 0.5, 0.5)),
    data_label=lambda _: few([0, 7]),
)


LABELS = torch.zeros(2, dtype=torch.int64)


def in_two(batches):
    """The same batches for weights and architecture."""
    return LoaderData(train=batches, test=batches, search=(batches, batches), example=example())


def stream(batches, shape=(1, 3, 8, 8)):
    return LoaderData(train=batches, test=batches, example=torch.zeros(shape))


# --- training ---------------------------------------------------------------------------------------------------

TRAINING = {"epochs": 1, "warm_up_epochs": 0, "learning_rate": 0.1}
BATCH = (torch.ones(4, 2), torch.arange(4) % 3)


def named_task(place):
    (place / "own.py").write_text("def make():\n    return 1\n")
    return preset_options("quick", {"task": f"{place}/own.py:make"})


def train(network=None, batches=None, task=None, **keywords):
    options = transprune.TrainingOptions(**TRAINING)
    data = stream(batches or [BATCH], (1, 2))
    return transprune.train(network or nn.Linear(2, 3), data, options, task=task, **keywords)


def distilled(teacher):
    data = stream([BATCH], (1, 2))
    return transprune.distill(nn.Linear(2, 3), teacher, data, transprune.DistillationOptions(**TRAINING))


class Doubling(nn.Module):
    def forward(self, features):
        return features.mul_(2)


class Failing:
    def __init__(self, error):
        self.error = error

    def __iter__(self):
        raise self.error

    def __len__(self):
        return 1


class Raising(nn.Linear):
    def __init__(self, error):
        super().__init__(2, 3)
        self.error = error

    def forward(self, inputs):
        raise self.error


def saved_twice(place):
    network = nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, 3))
    found = transprune.compress(network, torch.randn(16, 2), "macs=0.5")
    for student in (found.student, transprune.shrink(network, found.architecture, BATCH[0])):
        transprune.save(student, place / "run", teacher=network, found=found, data=stream([BATCH], (1, 2)))


def run_changed(place, **changes):
    transprune.run(nn.Linear(2, 3), [BATCH], "macs=0.5", place / "run", "quick", **changes)


def not_handed_over():
    raise interruption._not_handed_over(OSError(errno.ENOSPC, "No space left on device"))


def timed_out():
    raise RuntimeError("DataLoader timed out after 600 seconds")
    yield


def number(outputs, targets):
    return outputs.square().mean()


def scored(metric):
    return Task(loss=number, metrics={"score": metric})


NAN = (torch.full((4, 2), float("nan")), BATCH[1])

ways(
    training_least=lambda _: transprune.TrainingOptions(epochs=0),
    training_warm_up=lambda _: transprune.TrainingOptions(epochs=3, warm_up_epochs=3),
    distillation_hints=lambda _: transprune.DistillationOptions(hints=-1.0),
    distillation_options=lambda _: transprune.DistillationOptions(weight=2.0),
    search_shares=lambda _: transprune.SearchOptions(weights_share=1.0),
    search_warm_up=lambda _: transprune.SearchOptions(epochs=2, warm_up_epochs=2),
    option_kind=lambda _: transprune.TrainingOptions(epochs=1.5),
    option_word=lambda _: transprune.Setup(on_divergence="skp"),
    option_pair=lambda _: transprune.SearchOptions(architecture_betas=("0.5", 0.9)),
    divergence=lambda _: train(batches=[BATCH, NAN]),
    first_loss=lambda _: train(batches=[NAN]),
    loss_without_weights=lambda _: train(task=Task(loss=lambda outputs, _: torch.zeros(()))),
    loss_no_number=lambda _: train(task=Task(loss=lambda outputs, _: outputs)),
    metric_shape=lambda _: train(task=scored(lambda outputs, _: torch.zeros(3))),
    metric_end=lambda _: (
        train(task=scored(Metric(lambda outputs, _: outputs)))
        and evaluate(nn.Linear(2, 3), stream([BATCH], (1, 2)), task=scored(Metric(lambda outputs, _: outputs)))
    ),
    metric_finish=lambda _: train(task=scored(Metric(number, finish=lambda mean: mean.nothing))),
    no_values=lambda _: train(nn.Linear(2, 3, device="meta")),
    batch_gradients=lambda _: train(nn.Sequential(nn.Linear(2, 3), nn.Sigmoid(), Doubling())),
    batch_loss=lambda _: train(task=Task(loss=lambda outputs, targets: outputs["loss"])),
    task_outputs=lambda _: Task(loss=number, outputs="words"),
    task_name=lambda _: Task(loss=number, metrics={"loss": number}),
    task_several=lambda _: classification().metric("top1").measure(BATCH[0][:, :3], BATCH[0][:, :3]),
    task_rows=lambda _: multi_label().loss(torch.zeros(2, 3), torch.tensor([0, 1])),
    images_several=lambda _: _check_images(
        SimpleNamespace(data="imagefolder:pets", task=None, compress=None), few(torch.eye(2))
    ),
    task_shapes=lambda _: train(task=regression()),
    batch_form=lambda _: last_is_target(torch.zeros(2)),
    batch_apart=lambda _: train(batches=[torch.zeros(4, 2)]),
    batch_label=lambda _: train(batches=[(BATCH[0], torch.full((4,), 9))]),
    batch_type=lambda _: train(batches=[(BATCH[0].double(), BATCH[1])]),
    batch_label_type=lambda _: train(batches=[(BATCH[0], BATCH[1].float())]),
    batch_label_shape=lambda _: train(batches=[(BATCH[0], BATCH[1][:, None])]),
    batch_label_text=lambda _: train(batches=[(BATCH[0], ("cat", "dog", "cat", "dog"))]),
    batch_of_three=lambda _: train(batches=[(*BATCH, torch.ones(4))]),
    teacher_kind=lambda _: distilled(7),
    teacher_outputs=lambda _: distilled(lambda inputs: {"a": inputs, "b": inputs}),
    measured_label=lambda _: evaluate(nn.Linear(2, 3), stream([(BATCH[0], torch.full((4,), 9))], (1, 2))),
    no_memory=lambda _: train(Raising(MemoryError())),
    worker_died=lambda _: train(
        batches=Failing(RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed."))
    ),
    batch_not_handed_over=lambda _: not_handed_over(),
    loader_waits=lambda _: next(interruption._handed_over(timed_out())),
    loader_fails=lambda _: train(batches=Failing(OSError("the disk is gone"))),
    data_kind=lambda _: transprune.train(nn.Linear(2, 3), [BATCH]),
    optimizer_name=lambda _: transprune.TrainingOptions(optimizer="adam"),
    optimizer_kind=lambda _: optimizer_of([], transprune.TrainingOptions(), lambda *_: 1),
    optimizer_made=lambda _: optimizer_of([], transprune.TrainingOptions(), "adamw"),
    run_part_option=lambda place: run_changed(place, mixup=0.2),
    run_change=lambda place: run_changed(place, setup=transprune.Setup()),
    run_part=lambda place: run_changed(place, distill={"mixup": 0.2}),
    saved_over=saved_twice,
    gradient_clip=lambda _: transprune.TrainingOptions(gradient_clip=0),
    average_share=lambda _: transprune.TrainingOptions(average=1.0),
    labels_to_spread=lambda _: softening(nn.Linear(2, 3), transprune.TrainingOptions(label_smoothing=0.1), (BATCH[0],))(
        batches.Batch((BATCH[0],), BATCH[0])
    ),
    data_kind_of_loops=lambda _: batches.example_of([BATCH]),
    task_kind=lambda place: task_of(named_task(place)),
    task_word=lambda _: task_of(preset_options("quick", {"task": "regresion"})),
    task_in_python=lambda _: task_of(preset_options("quick", {"task": "python:r2"})),
    classes_unknown=lambda _: build_model("resnet20", classes=None, image_channels=None),
    export_name=lambda place: transprune.export(nn.Linear(2, 3), BATCH[0], place / "net.bin"),
    imitation=lambda _: transprune.distill(
        nn.Linear(2, 3),
        nn.Linear(2, 2),
        stream([BATCH], (1, 2)),
        transprune.DistillationOptions(**TRAINING),
        task=Task(loss=number),
    ),
)

# --- run folders ------------------------------------------------------------------------------------------------

OPTIONS = RunOptions(model="resnet20", data="digits", budget=("macs=0.5",), preset="quick")


def run_folder(place, **files):
    """A folder of a run with these files, whose names are written with `_` for `.`."""
    folder = RunFolder.create(place, {"seed": 0})
    for name, content in files.items():
        folder.write_text(name.replace("_", "."), content)
    return folder


def options_file(text):
    """Options in a file that holds this text."""

    def provoke(place):
        (place / "options.toml").write_text(text)
        preset_options("quick", read_config(place / "options.toml"), path=place / "options.toml")

    return provoke


def student(described, *, widths=None):
    def provoke(place):
        content = {"widths": widths or {}, "depths": {}, **described}
        folder = run_folder(place, architecture_json=json.dumps(content))
        folder.write_tensors("student.safetensors", {"x": torch.zeros(12)})
        transprune.load(place)

    return provoke


@way
def student_of_a_class(place):
    described = {"name": "python:x", "inputs": [{"shape": [1, 3], "dtype": "torch.float32"}], "structure": None}
    folder = run_folder(place, architecture_json=json.dumps({"widths": {}, "depths": {}, "model": described}))
    folder.write_tensors("student.safetensors", {"weight": torch.zeros(2, 3)})
    transprune.load(place, model=nn.Linear(3, 2))


@way
def student_of_another(place):
    folder = run_folder(place, architecture_json=json.dumps({"widths": {}, "depths": {}, **model()}))
    folder.write_tensors("student.safetensors", transprune.resnet(20, classes=3, image_channels=1).state_dict())
    transprune.load(place, model=transprune.resnet(20, classes=7, image_channels=1))


def model(name="resnet20", classes=3):
    return {"model": {"name": name, "classes": classes, "input_size": [1, 8, 8]}}


@way
def disk_full(place):
    with mock.patch.object(os, "fsync", side_effect=OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))):
        RunFolder(place).write_text("result.json", "{}")


@way
def folder_held(place):
    lock = FolderLock(place)
    try:
        FolderLock(place)
    finally:
        lock.release()


@way
def stopped(place):
    kept = Checkpoints(place, CheckpointOptions(max_minutes=1e-9))
    kept.after_step("search", lambda: 1)


@way
def checkpoint_newer(place):
    (place / "checkpoint.safetensors").write_bytes(encode_tree({"format": 99, "phase": "search", "state": 1}))
    Checkpoints(place).find("search")


@way
def folder_not_ours(place):
    (place / "config.toml").write_text("mine = 1\n")
    RunFolder.create(place, {}, overwrite=True)


@way
def device_beyond(_):
    with (
        mock.patch.object(torch.cuda, "is_available", return_value=True),
        mock.patch.object(torch.cuda, "device_count", return_value=2),
    ):
        choose_device("cuda:7")


@way
def device_none(_):
    with (
        mock.patch.object(torch.cuda, "is_available", return_value=False),
        mock.patch.object(torch.version, "cuda", None),
    ):
        choose_device("cuda")


def options(**changes):
    return RunOptions(**{**vars(OPTIONS), **changes})


@way
def model_no_logits(place):
    (place / "net.py").write_text("from torch import nn\ndef build():\n    return nn.Sequential(\n")
    code = "from torch import nn\n\ndef build():\n"
    code += "    return nn.Sequential(nn.Conv2d(1, 8, 3), nn.Flatten(), nn.Linear(288, 8), nn.Linear(8, 7))\n"
    (place / "net.py").write_text(code)
    prepare(options(model=f"{place / 'net.py'}:build"), place / "out", device="cpu")


def changed_code(place, go_on):
    file = place / "net.py"
    code = "from torch import nn\ndef build():\n    return nn.Sequential(nn.Conv2d(1, {0}, 3), "
    code += "nn.Flatten(), nn.Linear({0} * 36, 10))\n"
    file.write_text(code.format(8))
    with prepare(options(model=f"{file}:build"), place / "out", device="cpu") as run:
        run.folder.write_tensors("teacher.safetensors", run.model.state_dict())
    file.write_text(code.format(9))
    go_on(place / "out", device="cpu")


def begun(place, **changes):
    """A run whose data were others in this when it began."""
    with prepare(OPTIONS, place / "out", device="cpu") as run:
        kept = run.folder.read_json("data.json")
    run.folder.write_json("data.json", {**kept, **changes})
    return place / "out"


@way
def data_classes(place):
    with open_run(begun(place, classes=["zero", *map(str, range(1, 10))]), device="cpu") as run:
        _ = run.data


@way
def data_order(place):
    with open_run(begun(place, classes=[*map(str, range(9, -1, -1))]), device="cpu") as run:
        _ = run.data


@way
def data_training(place):
    with open_run(begun(place, training_images=7), device="cpu") as run:
        teach_step(run)


@way
def data_single_class(place):
    (place / "images").mkdir()
    for part in ("train", "val"):
        folder = place / "images" / part / "cat"
        folder.mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(folder / "0.png")
    prepare(options(data=f"imagefolder:{place / 'images'}"), place / "out", device="cpu")


@way
def data_malformed(place):
    with open_run(begun(place, mean=1), device="cpu") as run:
        _ = run.data


def other_teacher(out, device):
    with open_run(out, device=device) as run:
        load_teacher(run)


ways(
    code_of_teacher_changed=lambda place: changed_code(place, other_teacher),
    code_changed=lambda place: changed_code(place, resume_run),
    call_kinds=lambda _: transprune.export(plain(), "student.onnx", example()),
    measure_kinds=lambda _: transprune.measure("runs/first", example()),
    option_unknown=lambda _: read_command(["run", "resnet20", "--weight", "x"]),
    inspect_size=lambda _: InspectCommand(model="resnet20", input_size=(3, 0, 8))(),
    compare_nothing=lambda _: CompareCommand(runs=())(),
    watch_port=lambda folder: watch_server(fake_run(folder / "run", until="config"), 70_000),
    preset=lambda _: transprune.get_preset("quik"),
    resume_and_overwrite=lambda place: prepare(OPTIONS, place, resume=True, overwrite=True),
    partial_alone=lambda place: prepare(options(weights_partial=True), place, device="cpu"),
    config_malformed=lambda place: RunOptions.from_config({"seed": "one"}, place),
    data_missing=lambda _: read_command(["run", "net.py:build", "--budget", "macs=0.5", "--out", "x"]).options(),
    pretrained_and_weights=lambda _: read_command(
        ["run", "resnet20", "--budget", "macs=0.5", "--out", "x", "--pretrained", "--weights", "w.pth"]
    ).options(),
    verb_unknown=lambda _: read_command(["evalute", "runs/first"]),
    config_file_missing=lambda place: read_config(place / "options.toml"),
    config_file_toml=options_file("epochs ="),
    config_file_newer=options_file("format = 99\n"),
    config_file_key=options_file("[search]\nepoch = 3\n"),
    config_file_range=options_file("[teacher]\nepochs = 0\n"),
    config_bytes=lambda place: RunFolder.create(place, {"data": "imagefolder:\udcff"}),
    config_value=lambda place: RunFolder.create(place, {"value": {1, 2}}),
    checkpoint_options=lambda _: CheckpointOptions(max_minutes=0),
    journal_time=lambda _: Journal().record("start", time=1),
    journal_value=lambda _: Journal().record("start", value=object()),
    journal_line=lambda place: read_journal(
        run_folder(place, journal_jsonl='nonsense\n{"event": "start"}\n').file("journal.jsonl")
    ),
    folder_null=lambda _: RunFolder.create("a\0b", {}),
    folder_malformed=lambda place: run_folder(place, result_json="{").read_json("result.json"),
    folder_changed=lambda place: run_folder(place, result_json=f'{{"sha256": "{"0" * 64}"}}').read_json("result.json"),
    folder_list=lambda place: run_folder(place, result_json="[]").read_json("result.json"),
    folder_file=lambda place: (place / "net.pth").write_text("x") and RunFolder.open(place / "net.pth"),
    folder_missing=lambda place: RunFolder.open(place / "none"),
    folder_newer=lambda place: run_folder(place, config_toml="format = 99\n").config,
    folder_incomplete=lambda place: run_folder(place).require("architecture.json", made_by="search"),
    folder_other_run=lambda place: RunFolder.create(run_folder(place).path, {"seed": 1}),
    folder_strangers=lambda place: (place / "thesis.txt").write_text("x") and RunFolder.create(place, {}),
    device_unknown=lambda _: choose_device("tpu"),
    student_misfit=student(model(), widths={"stem.conv": 10**9}),
    student_newer=student({"format": 99}),
    student_undescribed=student({"model": {"name": "resnet20"}}),
    student_own_code=student(model("net.py:build")),
    report_empty=lambda place: read_record(run_folder(place).path),
    report_malformed=lambda place: read_record(run_folder(place, space_json='{"groups": [1]}').path),
)

# --- latency ----------------------------------------------------------------------------------------------------


@way
def latency_onnx(_):
    with mock.patch.object(torch.onnx, "export", side_effect=RuntimeError("no such operator")):
        network_onnx(plain(), (example(),))


@way
def latency_damaged(place):
    (place / "latency.json").write_text("{}")
    load_model(place / "latency.json", {}, SPACE)


@way
def file_size_damaged(place):
    folder = run_folder(place)
    folder.write_text("file_size.json", '{"weight": "heavy"}')
    known_file_size(folder)


@way
def file_size_eight_bits(_):
    with mock.patch.object(OpenVino, "is_installed", True):
        file_size(staged(), SPACE, example(), "openvino", int8=True)


@way
def file_size_inexact(_):
    files = [{".onnx": b"x" * size} for size in (1000, 9000, 200, 50_000, 3, 77, 1_000_000, 5)]
    with mock.patch.object(measurement, "files_for", side_effect=files):
        file_size(staged(), SPACE, example())


ways(
    measure_options=lambda _: MeasureOptions(batch_size=0),
    latency_backend=lambda _: make_backend(SimpleNamespace(backend="tensorflow")),
    latency_runtime=lambda _: make_backend(LatencyOptions()).file({".onnx": b"no model"}, (example(),)),
    latency_least=lambda _: LatencyOptions(grid=1),
    latency_bound=lambda _: LatencyOptions(bound=2.0),
    latency_batch=lambda _: stopwatch.as_batch(plain(), (torch.zeros(2, 3), torch.zeros(3, 3)), 4),
    latency_trust=lambda _: LatencyModel({}, 1, (), Validation(predicted=(100, 100), measured=(200, 300))).check_trust(
        0.15
    ),
    latency_space=lambda _: operators_of(read(plain(), example()), SPACE),
    search_frontier=lambda _: refuse_frontier(("macs=0.3,0.5",)),
    step_of_frontier=lambda place: open_run(frontier(place)),
)


def frontier(place):
    """A folder of a frontier that has not begun."""
    RunFolder.create(place, asdict(options(budget=("macs=0.3,0.5",))))
    return place


# --- export -----------------------------------------------------------------------------------------------------

IMAGES = [torch.ones(2, 3, 8, 8)]


@way
def onnx_fails(_):
    wrapped = Exception("This is step 2 of 3")
    wrapped.__cause__ = RuntimeError("no such operator")
    with mock.patch.object(torch.onnx, "export", side_effect=wrapped):
        onnx_bytes(export_program(plain(), IMAGES[0]))


@way
def pt2_fails(_):
    with mock.patch.object(torch.export, "save", side_effect=RuntimeError("no such operator")):
        pt2_bytes(SimpleNamespace())


def executorch_threads(_):
    with mock.patch.object(ExecuTorch, "_is_in_use", True):
        ExecuTorch()._change_threads(3, print)


def runtime_not_installed(_):
    with mock.patch.object(type(RUNTIMES["openvino"]), "packages", {"no_such_package": "none"}):
        find_runtime("openvino")


ways(
    export_disagrees=lambda _: check_agreement(".onnx", lambda images: torch.ones(2, 5) * 99, plain(), IMAGES),
    export_program=lambda _: export_program(Branching(), IMAGES[0]),
    onnx_unreadable=lambda _: check_files(RUNTIMES["onnxruntime"], {".onnx": b"nonsense"}, plain(), IMAGES),
    executorch_threads=executorch_threads,
    int8_name=lambda _: quantise(plain(), None, "net.pt2"),
    int8_fails=lambda _: quantised_onnx(b"nonsense", []),
    runtime_unknown=lambda _: find_runtime("onnxruntim"),
    runtime_not_installed=runtime_not_installed,
    pt2_unreadable=lambda _: check_pt2(b"nonsense", plain(), IMAGES),
)


# --- several processes ------------------------------------------------------------------------------------------


@way
def processes_share_samples(_):
    with mock.patch.object(batches, "own_share", return_value=(0, 2)):
        list(batches._Shares([[0]], "train"))


@way
def process_gone(_):
    gone = RuntimeError("[gloo] Connection closed by peer [127.0.0.1]:1234")
    with (
        mock.patch.multiple(processes, count=lambda: 2, _group_for=lambda _: None),
        mock.patch.object(torch.distributed, "all_reduce", side_effect=gone),
    ):
        processes.total(1)


@way
def process_failed(_):
    def tell(outcome, _, group):
        outcome[1] = "cannot read it"

    with (
        mock.patch.multiple(processes, count=lambda: 2, rank=lambda: 1, _group_for=lambda _: None),
        mock.patch.object(torch.distributed, "broadcast_object_list", side_effect=tell),
    ):
        processes.from_first(lambda: 1)


ways(
    processes_share_images=lambda _: make_loader(
        few().train, few(), batch_size=4, train=True, seed=0, device="cpu", share=(0, 9)
    ),
    step_accumulate=lambda _: transprune.SearchOptions(accumulate=0),
)


# --- without training -------------------------------------------------------------------------------------------


def images_folder(place: Path) -> str:
    """A folder of images without labels, to be named as data."""
    (place / "photos").mkdir()
    for number in range(20):
        Image.fromarray(np.full((8, 8, 3), number, dtype=np.uint8)).save(place / "photos" / f"{number}.png")
    return f"images:{place / 'photos'}"


def scores_of_staged() -> transprune.Scores:
    return transprune.score(staged(), SPACE, torch.randn(16, 3, 8, 8))


def coarse() -> spaces.SearchSpace:
    return inspect(staged(), example(), ratios=(0.5, 1.0))


@way
def compress_untrained(_):
    options = RunOptions(
        model="resnet20", data="digits", budget=("macs=0.5",), preset="quick", compress=CompressOptions()
    )
    collect(options, torch.device("cpu"))


def asked_to_lose(**options):
    given = {"model": "resnet20", "data": "digits", "budget": ("macs",), "preset": "quick"}
    return RunOptions(**{**given, **options})


@way
def lose_unlabelled(place):
    save_file(transprune.resnet(20).state_dict(), place / "weights.safetensors")
    asked = asked_to_lose(
        data=images_folder(place), weights=str(place / "weights.safetensors"), compress=CompressOptions(samples=16)
    )
    find_budget(asked, 0.5, place / "run")


@way
def lose_in_processes(place):
    with mock.patch("transprune.runtime.processes.count", return_value=2):
        find_budget(asked_to_lose(), 0.5, place / "run")


def ruined(network: nn.Module) -> nn.Module:
    """The network, without a number among its weights."""
    for parameter in network.parameters():
        parameter.data.fill_(float("nan"))
    return network


@way
def lose_nothing(_):
    loader = [(torch.randn(16, 3, 8, 8), torch.arange(16) % 5)]
    data = LoaderData(train=loader, test=loader, example=example())
    transprune.smallest(staged(), data, 0, task=transprune.Task(loss=F.cross_entropy), samples=16, train=ruined)


@way
def derive_into_itself(place):
    RunFolder.create(place / "run", {"model": "resnet20", "budget": ["macs=0.5"]})
    derive_run(place / "run", ["macs=0.3"], place / "run")


@way
def derive_without_search(place):
    RunFolder.create(place / "run", {})
    _probabilities(RunFolder(place / "run"), SPACE)


ways(
    images_none=lambda place: load_data(f"images:{place}"),
    lose_with_amount=lambda place: find_budget(asked_to_lose(budget=("macs=0.5",)), 0.5, place),
    lose_untrained=lambda place: find_budget(asked_to_lose(), 0.5, place),
    lose_planned=lambda _: read_command(
        ["run", "resnet20", "--budget", "macs", "--lose", "0.5", "--plan", "--out", "x"]
    ).show_plan(),
    lose_less_than_none=lambda _: transprune.smallest(staged(), ([BATCH], [BATCH]), -1),
    lose_unknown_kind=lambda _: transprune.smallest(staged(), ([BATCH], [BATCH]), 0.5, "time"),
    targets_of_a_class=lambda _: _plan_of([torch.zeros(4), Path()]),
    images_unlabelled=lambda place: transprune.train(plain(), load_data(images_folder(place))),
    samples_few=lambda _: transprune.compress(staged(), torch.zeros(3, 3, 8, 8), "macs=0.5"),
    samples_none=lambda _: batches.first_samples(plain(), [], 16, 0),
    samples_strange=lambda _: transprune.compress(staged(), [("a", "b")], "macs=0.5"),
    samples_unlike=lambda _: transprune.compress(
        staged(), [torch.zeros(8, 3, 8, 8), torch.zeros(8, 3, 6, 6)], "macs=0.5"
    ),
    samples_unlabelled=lambda _: transprune.compress(staged(), torch.zeros(32, 3, 8, 8), "macs=0.5", by_loss=True),
    samples_kind=lambda _: transprune.compress(staged(), 7, "macs=0.5"),
    samples_held=lambda _: held([1, 2], (3, 8, 8)),
    scores_of_another_space=lambda _: transprune.compress(
        staged(), torch.randn(16, 3, 8, 8), "macs=0.5", space=coarse(), scores=[scores_of_staged()]
    ),
)


# --- detectors --------------------------------------------------------------------------------------------------


class Pieces(nn.Module):
    """Two convolutions of which the second is given what is computed between them."""

    def __init__(self, between=1.0) -> None:
        super().__init__()
        self.between = between
        self.first, self.second = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 2, 3)

    def forward(self, images):
        if len(images) > 2:
            return torch.stack(images)
        return self.second(self.first(torch.stack(images[:1])) + self.between)


class Deep(Pieces):
    """Another, with a convolution inside of a module."""

    def __init__(self) -> None:
        super().__init__()
        self.third = nn.Sequential(nn.Conv2d(3, 3, 1))

    def forward(self, images):
        return self.third(torch.stack(images))


class Changing(Pieces):
    """A network that answers otherwise whenever it is called."""

    def forward(self, images):
        return self.first(torch.stack(images)) + torch.rand(1)


class Unlike(nn.Module):
    """A network that gives its part now one tensor and now two."""

    def __init__(self) -> None:
        super().__init__()
        self.first = Summing()

    def forward(self, images):
        return self.first(images)


class Summing(nn.Linear):
    """A linear layer of the sum of several tensors."""

    def __init__(self) -> None:
        super().__init__(4, 4)

    def forward(self, tensors):
        return super().forward(torch.stack(tensors).sum(0))


IMAGE = [torch.rand(3, 8, 8)]
OBJECTS = {"boxes": torch.tensor([[0, 0, 4.0, 4.0]]), "labels": torch.tensor([1])}


def precisions_without_the_package(_):
    with mock.patch.dict(sys.modules, {"faster_coco_eval": None}):
        average_precisions([])


class TakesTargets(Pieces):
    """A detector by its arguments, whose losses are none."""

    def forward(self, images, targets=None):
        return super().forward(images)


def without_losses(_):
    task = transprune.detection(transprune.part_of(TakesTargets(), (IMAGE,)))
    _, targets = task.split((IMAGE, [OBJECTS]))
    task.loss_of({"first": torch.zeros(1, 4, 6, 6)}, targets)


def taken_apart(objects):
    transprune.detection(transprune.part_of(TakesTargets(), (IMAGE,))).split((IMAGE, objects))


ways(
    part_none=lambda _: transprune.part_of(nn.Flatten(), torch.zeros(2, 3)),
    part_between=lambda _: transprune.part_of(Pieces(), (IMAGE,), ["first", "second"]),
    part_named=lambda _: transprune.part_of(Pieces(), (IMAGE,), ["third"]),
    part_inside=lambda _: transprune.part_of(Deep(), (IMAGE,), ["third", "third.0"]),
    part_answers=lambda _: transprune.Surroundings(transprune.part_of(Pieces(), (IMAGE,))).outputs(
        (IMAGE,), {"second": torch.zeros(1)}
    ),
    precision_images=lambda _: average_precisions(
        [{"found": OBJECTS | {"scores": torch.ones(1)}, "true": OBJECTS}, {"found": OBJECTS, "true": OBJECTS}]
    ),
    part_surrounded=lambda _: transprune.Surroundings(Pieces()),
    part_changing=lambda _: transprune.part_of(Changing(), (IMAGE,)),
    part_not_reached=lambda _: transprune.Surroundings(transprune.part_of(Pieces(), (IMAGE,))).inputs_of((3 * IMAGE,)),
    part_given_more=lambda _: transprune.Surroundings(transprune.part_of(Unlike(), ([torch.zeros(2, 4)],))).inputs_of(
        (2 * [torch.zeros(2, 4)],)
    ),
    metric_of_all=lambda _: evaluate(
        plain(),
        2 * ([(example(2), torch.zeros(2).long())],),
        task=transprune.Task(
            loss=F.cross_entropy,
            metrics={"odd": transprune.Metric(lambda *_: [1], finish=len, of_all=True)},
        ),
    ),
    detection_losses=without_losses,
    detection_package=precisions_without_the_package,
    detection_batch=lambda _: taken_apart({}),
    detection_objects=lambda _: taken_apart([{"boxes": OBJECTS["boxes"]}]),
    detection_shapes=lambda _: taken_apart([OBJECTS | {"labels": torch.tensor([1, 2])}]),
    detection_box=lambda _: taken_apart([OBJECTS | {"boxes": torch.tensor([[0, 0, 9.0, 4.0]])}]),
    detection_label=lambda _: taken_apart([OBJECTS | {"labels": torch.tensor([-1])}]),
)


# --- trackers ---------------------------------------------------------------------------------------------------


@way
def tensorboard_missing(_):
    with mock.patch("importlib.util.find_spec", return_value=None):
        Tracking(tensorboard=True).loaded()


@way
def tracker_function(place):
    (place / "mine.py").write_text("def told(entry): pass")
    Tracking(tracker=(f"{place}/mine.py:tell",)).loaded()


ways(
    tracker_form=lambda _: Tracking(tracker=("mine.py",)).loaded(),
    tracker_file=lambda _: Tracking(tracker=("mine.py:told",)).loaded(),
)
