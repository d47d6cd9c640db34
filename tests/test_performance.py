"""Teacher and student measured side by side. No test says how long anything takes, only what is measured."""

import json
import math

import pytest
import torch
from torch import nn

import small_networks as zoo
from fake_run import fake_run
from transprune.errors import OptionError
from transprune.latency import performance
from transprune.latency.performance import Performance, measure, measurements_json, most_time
from transprune.options import MeasureOptions
from transprune.reading.inspection import inspect
from transprune.reports.report import write_report
from transprune.runtime import Inputs
from transprune.shrinking.shrink import shrink

QUICK = MeasureOptions(batch_size=3, repeats=5, seconds=0.1)

BOTH = ["torch", "onnxruntime"]
"""The runtimes that are always there."""


@pytest.fixture(scope="module")
def found():
    teacher = zoo.residual()
    student = shrink(teacher, inspect(teacher, zoo.example()).smallest_architecture(), zoo.example())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(performance._Subject, "peak_memory", lambda *_: 1)  # every one is a process of its own
        patch.setattr(performance, "_runtimes", lambda: BOTH)
        return measure({"teacher": teacher, "student": student}, zoo.example(), QUICK)


def test_every_network_is_measured_in_every_runtime_at_both_batch_sizes(found):
    cases = [(each.runtime, each.batch_size, each.network) for each in found]
    assert cases == [
        (runtime, batch, network) for runtime in BOTH for batch in (1, 3) for network in ("teacher", "student")
    ]


def test_quartiles_enclose_the_median_and_throughput_is_its_inverse(found):
    for each in found:
        assert 0 < each.lower_ms <= each.latency_ms <= each.upper_ms
        assert each.throughput == pytest.approx(1000 * each.batch_size / each.latency_ms)


def test_the_peak_memory_of_a_process_is_at_least_that_of_the_weights_it_loads(tmp_path):
    network = nn.Sequential(nn.Flatten(), nn.Linear(192, 20_000), nn.Linear(20_000, 5))
    subject = performance._Subject("teacher", network, zoo.example(1), tmp_path)
    for runtime in BOTH:
        assert subject.has_files_for(runtime)
        memory = subject.peak_memory(runtime, (zoo.example(1),), torch.device("cpu"))
        assert memory is not None
        assert memory > 0.9 * subject.sizes[runtime]


class Reader(nn.Module):
    """Takes token ids and a mask by name, and a number for each sample."""

    def __init__(self):
        super().__init__()
        self.embed, self.first, self.last = nn.Embedding(11, 8), nn.Linear(8, 16), nn.Linear(16, 3)

    def forward(self, ids, *, mask, scale):
        hidden = self.first(self.embed(ids)).relu() * mask.unsqueeze(-1)
        return {"logits": self.last(hidden.mean(1)) * scale, "hidden": hidden}


def test_a_network_of_several_inputs_is_measured(monkeypatch):
    monkeypatch.setattr(performance, "_runtimes", lambda: BOTH)
    probed = []
    peak = performance._Subject.peak_memory

    def once(self, runtime, inputs, device):  # every one is a process of its own
        if probed:
            return None
        probed.append(peak(self, runtime, inputs, device))
        return probed[0]

    monkeypatch.setattr(performance._Subject, "peak_memory", once)
    named = {"mask": torch.ones(2, 5), "scale": torch.ones(2, 1)}
    example = Inputs(torch.full((2, 5), 10), **named)
    found = measure(Reader(), example, QUICK)
    assert [(each.runtime, each.batch_size) for each in found] == [(name, batch) for name in BOTH for batch in (1, 3)]
    assert found[0].peak_memory_bytes is not None


def test_memory_can_be_left_out_and_the_time_is_announced(monkeypatch):
    monkeypatch.setattr(performance._Subject, "peak_memory", lambda *_: pytest.fail("it was left out"))
    monkeypatch.setattr(performance, "_runtimes", lambda: BOTH)
    options = MeasureOptions(batch_size=1, repeats=5, seconds=0.1, memory=False)
    found = measure({"student": nn.Sequential(nn.Flatten(), nn.Linear(192, 5))}, zoo.example(), options)
    assert [each.peak_memory_bytes for each in found] == [None, None]
    assert most_time(2, MeasureOptions(memory=False)) == "latency takes 1 min 20 s at most; memory is left out"
    assert "1 min 20 s at most; memory takes 8 processes, seconds each and 8 min 0 s at" in most_time(
        2, MeasureOptions()
    )


def test_memory_that_cannot_be_told_is_left_open(tmp_path):
    subject = performance._Subject("teacher", zoo.plain(), zoo.example(1), tmp_path)
    subject.files["onnxruntime"] = {".onnx": b"no network"}
    assert subject.peak_memory("onnxruntime", (zoo.example(1),), torch.device("cpu")) is None


def test_the_smaller_network_has_the_smaller_files(found):
    teacher, student = found[:2]
    assert student.file_bytes < teacher.file_bytes


def test_networks_that_fix_the_batch_are_measured_with_single_samples(monkeypatch):
    monkeypatch.setattr(performance, "_runtimes", lambda: BOTH)

    class OneAtATime(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)

        def forward(self, images):
            return self.conv(images).reshape(1, 144)

    monkeypatch.setattr(performance._Subject, "peak_memory", lambda *_: None)
    found = measure({"teacher": OneAtATime()}, zoo.example(1), QUICK)
    assert [(each.batch_size, each.peak_memory_bytes) for each in found] == [(1, None), (1, None)]


def test_the_callers_networks_are_untouched(monkeypatch):
    monkeypatch.setattr(performance._Subject, "peak_memory", lambda *_: None)
    network = zoo.plain().train()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    measure({"teacher": network}, zoo.example(), QUICK)
    assert network.training
    assert all((value == before[name]).all() for name, value in network.state_dict().items())


def test_options_out_of_range_are_refused():
    with pytest.raises(OptionError, match="batch_size=0"):
        MeasureOptions(batch_size=0)
    with pytest.raises(OptionError, match="repeats=2"):
        MeasureOptions(repeats=2)


def performances(memory=2_000_000):
    return [
        Performance(
            network=network,
            runtime=runtime,
            device="cpu",
            threads=1,
            batch_size=batch,
            latency_ms=milliseconds,
            lower_ms=milliseconds - 0.25,
            upper_ms=milliseconds + 0.5,
            throughput=1000 * batch / milliseconds,
            peak_memory_bytes=memory,
            file_bytes=1_100_000,
        )
        for runtime in BOTH
        for batch in (1, 64)
        for network, milliseconds in (("teacher", 4.0 * batch), ("student", 1.0 * batch))
    ]


@pytest.mark.parametrize("memory", [2_000_000, None])
def test_the_report_shows_what_was_measured(memory, tmp_path):
    folder = fake_run(tmp_path / "run")
    assert "Speed and memory" not in write_report(folder).read_text(encoding="utf-8")
    content = measurements_json(performances(memory), QUICK, "cpu")
    assert math.isfinite(content["measurements"][0]["throughput"])
    (folder / "measurements.json").write_text(json.dumps(content), encoding="utf-8")
    page = write_report(folder).read_text(encoding="utf-8").replace("&nbsp;", " ")
    assert "Speed and memory" in page
    assert "onnxruntime, 64" in page
    assert "1.000 ms (0.7500 – 1.500), 1,000 a second" in page
    assert "25.0 %" in page
    assert ("2.00 MB → 2.00 MB" in page) == (memory is not None)
