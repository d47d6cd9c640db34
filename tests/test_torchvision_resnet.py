"""torchvision's trained ResNets as networks of the paper's search space."""

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torchvision import models

from transprune.errors import ModelError
from transprune.models.by_name import build_model
from transprune.models.resnet import resnet, resnet_from_torchvision
from transprune.models.weights import load_weights
from transprune.reading.inspection import inspect
from transprune.reading.macs import count_macs

IMAGES = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
BLOCKS = {
    "resnet18": (models.resnet.BasicBlock, [2, 2, 2, 2]),
    "resnet34": (models.resnet.BasicBlock, [3, 4, 6, 3]),
    "resnet50": (models.resnet.Bottleneck, [3, 4, 6, 3]),
}


def trained(name="resnet18"):
    """A network of torchvision with weights and statistics that are not those of a new one."""
    torch.manual_seed(0)
    network = models.ResNet(*BLOCKS[name], num_classes=7)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.1)
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    return network.eval()


@pytest.mark.parametrize("name", BLOCKS)
@torch.no_grad()
def test_it_computes_what_torchvisions_does(name):
    network = trained(name)
    ours = resnet_from_torchvision(network)
    assert torch.allclose(ours(IMAGES), network(IMAGES), rtol=1e-4, atol=1e-4)
    assert not ours.training


def test_its_residual_widths_are_free_where_torchvisions_are_tied():
    network = trained()
    ours, tied = (inspect(each, IMAGES[:1]) for each in (resnet_from_torchvision(network), network))
    assert len(ours.groups) == 17
    assert len(tied.groups) < 17
    full = ours.full_architecture()
    assert ours.macs(full) == tied.macs(tied.full_architecture()) == count_macs(network, IMAGES[:1])
    assert ours.params(full) == sum(parameter.numel() for parameter in network.parameters())


def test_it_costs_what_the_papers_network_costs():
    strided, pooled = resnet(50, halved_by="stride"), resnet(50)
    example = torch.zeros(1, 3, 224, 224)
    assert count_macs(strided, example) == count_macs(pooled, example) == 4_089_185_256
    assert sum(map(torch.numel, strided.parameters())) == sum(map(torch.numel, pooled.parameters())) == 25_557_032


def test_a_file_of_torchvisions_loads_into_the_strided_network(tmp_path):
    network = trained()
    torch.save(network.state_dict(), tmp_path / "resnet18.pth")
    ours = build_model("resnet18-strided", classes=7, image_channels=3).eval()
    weights = load_weights(tmp_path / "resnet18.pth", ours)
    assert weights.is_whole
    ours.load_state_dict(weights.tensors)
    with torch.no_grad():
        assert torch.allclose(ours(IMAGES), network(IMAGES), rtol=1e-4, atol=1e-4)


def test_into_the_papers_network_it_loads_as_a_start_only(tmp_path):
    save_file(trained("resnet50").state_dict(), tmp_path / "resnet50.safetensors")
    pooled = build_model("resnet50", classes=7, image_channels=3)
    with pytest.raises(ModelError, match=r"3 trained with a stride where this network pools .*sum.shortcut.1.weight"):
        load_weights(tmp_path / "resnet50.safetensors", pooled)
    weights = load_weights(tmp_path / "resnet50.safetensors", pooled, partial=True)
    assert weights.tensors.keys() == pooled.state_dict().keys()
    assert not weights.is_whole  # so the teacher is trained from there


@pytest.mark.parametrize(
    ("network", "why"),
    [
        (nn.Linear(2, 2), "it does not have their layers"),
        (models.resnext50_32x4d(), "size mismatch"),
        (models.wide_resnet50_2(), "size mismatch"),
        (
            models.ResNet(*BLOCKS["resnet50"], replace_stride_with_dilation=[False, False, True]),
            "with the same weights it computes something else",
        ),
    ],
)
def test_other_networks_are_refused(network, why):
    with pytest.raises(ModelError, match=rf"cannot take over this {type(network).__name__} .*{why}.*expected torch"):
        resnet_from_torchvision(network)
