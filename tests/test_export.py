"""The student as ONNX, and a student rebuilt from its run folder."""

import pytest
import torch
from torch import nn

from transprune.delivery.onnx_export import check_onnx, onnx_bytes
from transprune.errors import ExportError


def network(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(16, 5)).eval()


@pytest.fixture(scope="module")
def content():
    return onnx_bytes(network(), torch.zeros(1, 3, 4, 4))


def batches(*sizes):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(size, 3, 4, 4, generator=generator) for size in sizes]


def test_an_exported_network_gives_torchs_logits_on_batches_of_any_size(content):
    assert check_onnx(content, network(), batches(1, 2, 5, 33)) < 1e-5


def test_an_export_of_other_weights_is_not_trusted(content):
    with pytest.raises(ExportError, match="on a batch of 2 its logits differ from torch's by"):
        check_onnx(content, network(seed=1), batches(2))


def test_a_damaged_file_is_refused(content):
    with pytest.raises(ExportError, match="cannot run the exported ONNX file"):
        check_onnx(content[: len(content) // 2], network(), batches(1))


def test_exporting_leaves_the_network_in_its_mode():
    training = network().train()
    onnx_bytes(training, torch.zeros(1, 3, 4, 4))
    assert training.training
