"""On well-known networks at full size, well over half of the MACs can be searched away."""

import pytest
import torch
from torch import nn
from torchvision import models

import transprune


def tiny_vit() -> nn.Module:
    """ViT-Tiny: twelve layers of three heads and 192 features."""
    return models.VisionTransformer(
        image_size=224, patch_size=16, num_layers=12, num_heads=3, hidden_dim=192, mlp_dim=768
    )


NETWORKS = {
    **{
        name: getattr(models, name)
        for name in (
            *("resnet50", "mobilenet_v2", "mobilenet_v3_large", "efficientnet_b0", "convnext_tiny", "densenet121"),
            *("regnet_x_400mf", "regnet_y_400mf", "vgg16_bn"),
        )
    },
    "vit_tiny": tiny_vit,
}


@pytest.mark.parametrize("name", NETWORKS)
def test_at_least_sixty_percent_of_the_macs_can_be_removed_and_all_are_counted(name):
    with torch.device("cpu" if name.startswith("regnet") else "meta"):  # RegNets compute their own shape with tensors
        network = NETWORKS[name]().to("meta")
    images = torch.zeros(1, 3, 224, 224, device="meta")
    space = transprune.inspect(network.eval(), images)
    full = space.macs(space.full_architecture())
    assert full == transprune.count_macs(network, images)
    assert space.macs(space.smallest_architecture()) <= 0.4 * full
    # What stands beside stages is why some blocks are none; their widths are searched all the same.
    blocks = ("writes over the output of its last block", "have other shapes", "is of another class than")
    reasons = {fixed.reason for fixed in space.fixed if not any(each in fixed.reason for each in blocks)}
    assert reasons == {"it is an output of the network"}
