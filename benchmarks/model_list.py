"""The networks that the analysis is held against: small, untrained instances of many architectures.

Every classification family of torchvision, and of timm one architecture or more from every module that can be built
without weights of its own. Instances are small where the library offers a small variant or an argument that makes one;
a few have none (AlexNet and VGG with their wide classifiers, PNASNet, Inception-ResNet-v2) and stay large.

    python benchmarks/model_list.py            # prints the list
    python benchmarks/model_list.py PATTERN    # builds, runs and exports what matches, as JSON lines
"""

from __future__ import annotations

import json
import sys
import time
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from importlib import import_module
from typing import Any

import torch
import torchvision
from torch import Tensor, nn
from torchvision.models.resnet import Bottleneck

import transprune

CLASSES = 10
IMAGE_CHANNELS = 3


@dataclass(frozen=True)
class ListedModel:
    """How one network of the list is built."""

    source: str
    """`torchvision` or `timm`."""
    architecture: str
    """The library's name of the architecture; of torchvision also a class whose arguments the options are."""
    family: str
    size: int
    """Rows and columns of the input."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Arguments beside the number of classes."""
    label: str = ""
    """Tells networks of one architecture apart."""

    @property
    def name(self) -> str:
        """Unique in the list, for instance `timm/resnet10t`."""
        return f"{self.source}/{self.architecture}{self.label}"

    def build(self, seed: int = 0) -> nn.Module:
        """The network in evaluation mode; the same for the same seed.

        No weight is left at a constant: a branch that starts at zero would hide what happens in it.
        """
        torch.manual_seed(seed)
        network: nn.Module
        if self.source == "timm":
            create = import_module("timm").create_model
            network = create(self.architecture, num_classes=CLASSES, **self.options)
        else:
            network = getattr(torchvision.models, self.architecture)(num_classes=CLASSES, **self.options)
        stir_constants(network)
        calibrate(network, self.example(batch=8))
        return network.eval()

    def example(self, batch: int = 2) -> Tensor:
        """Random images [batch, channels, rows, columns]; the same each time."""
        generator = torch.Generator().manual_seed(1)
        return torch.randn(batch, IMAGE_CHANNELS, self.size, self.size, generator=generator)


@torch.no_grad()
def stir_constants(network: nn.Module) -> None:
    """Draws every parameter anew that has one value throughout."""
    for parameter in network.parameters():
        if bool((parameter == parameter.flatten()[0]).all()):
            if parameter.flatten()[0] == 0:
                parameter.normal_(std=0.05)
            else:
                parameter.uniform_(0.6, 1.2)


@torch.no_grad()
def calibrate(network: nn.Module, images: Tensor) -> None:
    """Sets the running statistics of batch norms to those of a batch of images."""
    norms = [module for module in network.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 1.0
    network.train()(images)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum


def torchvision_models(
    family: str, *architectures: str, size: int = 64, label: str = "", **options: Any
) -> Iterator[ListedModel]:
    return (ListedModel("torchvision", each, family, size, options, label) for each in architectures)


def timm_models(family: str, *architectures: str, size: int = 64, **options: Any) -> Iterator[ListedModel]:
    return (ListedModel("timm", each, family, size, options) for each in architectures)


TORCHVISION = (
    *torchvision_models("AlexNet", "alexnet"),
    *torchvision_models("VGG", "vgg11", "vgg13_bn", size=32),
    *torchvision_models("ResNet", "resnet18", "resnet34", "resnet50"),
    *torchvision_models("ResNeXt", "resnext50_32x4d"),
    *torchvision_models(
        "ResNeXt", "ResNet", label="-resnext", block=Bottleneck, layers=(2, 2, 2, 1), groups=8, width_per_group=16
    ),
    *torchvision_models(
        "Wide ResNet", "ResNet", label="-wide", block=Bottleneck, layers=(1, 2, 2, 1), width_per_group=128
    ),
    *torchvision_models(
        "ResNet",
        "ResNet",
        label="-dilated",
        block=Bottleneck,
        layers=(1, 1, 2, 2),
        replace_stride_with_dilation=(False, True, True),
    ),
    *torchvision_models("DenseNet", "densenet121", "densenet169"),
    *torchvision_models("GoogLeNet", "googlenet", aux_logits=False, init_weights=False),
    *torchvision_models("Inception", "inception_v3", size=96, aux_logits=False, init_weights=False),
    *torchvision_models("SqueezeNet", "squeezenet1_0", "squeezenet1_1"),
    *torchvision_models("MobileNetV2", "mobilenet_v2"),
    *torchvision_models("MobileNetV3", "mobilenet_v3_small", "mobilenet_v3_large"),
    *torchvision_models("ShuffleNetV2", "shufflenet_v2_x0_5", "shufflenet_v2_x1_0"),
    *torchvision_models("EfficientNet", "efficientnet_b0", "efficientnet_b1"),
    *torchvision_models("EfficientNetV2", "efficientnet_v2_s"),
    *torchvision_models("RegNet", "regnet_x_400mf", "regnet_x_800mf", "regnet_y_400mf", "regnet_y_800mf"),
    *torchvision_models("MNASNet", "mnasnet0_5", "mnasnet1_0"),
    *torchvision_models("ConvNeXt", "convnext_tiny"),
    *torchvision_models(
        "ViT",
        "VisionTransformer",
        image_size=64,
        patch_size=16,
        num_layers=6,
        num_heads=3,
        hidden_dim=192,
        mlp_dim=768,
    ),
    *torchvision_models(
        "ViT",
        "VisionTransformer",
        size=32,
        label="-small-patches",
        image_size=32,
        patch_size=4,
        num_layers=4,
        num_heads=4,
        hidden_dim=128,
        mlp_dim=256,
    ),
    *torchvision_models("Swin", "swin_t"),
    *torchvision_models("SwinV2", "swin_v2_t"),
    *torchvision_models(
        "MaxViT",
        "MaxVit",
        input_size=(64, 64),
        stem_channels=32,
        partition_size=2,
        block_channels=[32, 64, 128, 256],
        block_layers=[1, 1, 2, 1],
        head_dim=16,
        stochastic_depth_prob=0.0,
    ),
)

SHORT: dict[str, Any] = {"layers": (2, 2, 2, 1)}
SMALL_IMAGE: dict[str, Any] = {"img_size": 64}
SMALL_VIT: dict[str, Any] = {"img_size": 64, "embed_dim": 192, "depth": 4, "num_heads": 3}
SMALL_SWIN: dict[str, Any] = {"img_size": 64, "embed_dim": 48, "depths": (2, 2, 2, 2), "num_heads": (2, 4, 8, 16)}

TIMM_CONVOLUTIONAL = (
    *timm_models("VGG", "vgg11_bn", mlp_ratio=0.05),
    *timm_models("ResNet", "resnet10t", "resnet14t", "resnet26d"),
    *timm_models("ResNet", "resnet50s", "resnet50_gn", **SHORT),
    *timm_models("SE-ResNet", "seresnet18", "seresnext26d_32x4d", "legacy_seresnet18", "legacy_seresnext26_32x4d"),
    *timm_models("ECA-ResNet", "ecaresnet26t", "ecaresnext26t_32x4d"),
    *timm_models("ECA-ResNet", "ecaresnetlight", **SHORT),
    *timm_models("Pruned networks", "ecaresnet50d_pruned", "efficientnet_b1_pruned"),
    *timm_models("Blur-pool ResNet", "resnetblur18"),
    *timm_models("Blur-pool ResNet", "resnetaa50", **SHORT),
    *timm_models("Blur-pool ResNet", "resnetaa34d", layers=(2, 2, 2, 2)),
    *timm_models("ResNet-RS", "resnetrs50", **SHORT),
    *timm_models("ResNetV2", "resnetv2_18"),
    *timm_models("ResNetV2", "resnetv2_50", "resnetv2_50d_evos", "resnetv2_50d_frn", "resnetv2_50d_gn", **SHORT),
    *timm_models("BiT", "resnetv2_50x1_bit"),
    *timm_models("ResNeSt", "resnest14d"),
    *timm_models("ResNeSt", "resnest50d_1s4x24d", "resnest50d_4s2x40d", **SHORT),
    *timm_models("SK-ResNet", "skresnet18"),
    *timm_models("SK-ResNet", "skresnet50", "skresnext50_32x4d", **SHORT),
    *timm_models("Res2Net", "res2net50_14w_8s", "res2net50_26w_4s", "res2next50", "res2net50d", **SHORT),
    *timm_models("NF-ResNet", "nf_resnet26", "nf_ecaresnet26", "nf_seresnet26"),
    *timm_models("NF-RegNet", "nf_regnet_b0"),
    *timm_models("NFNet", "nfnet_l0", "eca_nfnet_l0", "dm_nfnet_f0", "nfnet_f0", width_factor=0.25, group_size=16),
    *timm_models("CSPNet", "cspresnet50", "cspresnext50", "cspdarknet53"),
    *timm_models("CS3Net", "cs3darknet_s", "cs3darknet_focus_s", "cs3sedarknet_l"),
    *timm_models("DarkNet", "darknet17", "sedarknet21"),
    *timm_models("CSPNeXt", "cspnext_tiny"),
    *timm_models("DPN", "dpn48b", "dpn68b"),
    *timm_models("DLA", "dla34", "dla46_c", "dla60x_c", "dla60_res2net"),
    *timm_models("HRNet", "hrnet_w18_small", "hrnet_w18_small_v2"),
    *timm_models("VoVNet", "vovnet39a", "ese_vovnet19b_slim", "ese_vovnet19b_slim_dw", "eca_vovnet39b"),
    *timm_models("SelecSLS", "selecsls42b"),
    *timm_models("GhostNet", "ghostnet_050", "ghostnetv2_100", "ghostnetv3_050"),
    *timm_models("HardCoRe-NAS", "hardcorenas_a"),
    *timm_models("TinyNet", "tinynet_e"),
    *timm_models("MixNet", "mixnet_s", "mixnet_m"),
    *timm_models("ReXNet", "rexnet_100", "rexnetr_100"),
    *timm_models("TResNet", "tresnet_m", "tresnet_v2_l", width_factor=0.5),
    *timm_models("EfficientNet", "efficientnet_b0", "efficientnet_lite0", "efficientnet_es", "efficientnet_cc_b0_4e"),
    *timm_models("EfficientNet", "efficientnet_blur_b0", "efficientnet_b0_gn", "efficientnet_b0_g8_gn"),
    *timm_models("EfficientNet", "efficientnet_b0_g16_evos", "efficientnet_x_b3", "tf_efficientnet_b0"),
    *timm_models("EfficientNetV2", "efficientnetv2_rw_t", "gc_efficientnetv2_rw_t", "tf_efficientnetv2_b0"),
    *timm_models("FBNet", "fbnetc_100", "fbnetv3_b"),
    *timm_models("MNASNet", "mnasnet_small", "semnasnet_075", "spnasnet_100"),
    *timm_models("MobileNetV1", "mobilenetv1_100"),
    *timm_models("MobileNetV2", "mobilenetv2_050", "mobilenet_edgetpu_v2_xs"),
    *timm_models("MobileNetV3", "mobilenetv3_small_050", "mobilenetv3_large_075", "tf_mobilenetv3_small_minimal_100"),
    *timm_models("LCNet", "lcnet_035", "lcnetv2_small"),
    *timm_models("MobileNetV4", "mobilenetv4_conv_small_035", "mobilenetv4_conv_aa_medium"),
    *timm_models("MobileNetV4", "mobilenetv4_conv_blur_medium", "mobilenetv4_hybrid_medium_075"),
    *timm_models("MobileNetV5", "mobilenetv5_base", channel_multiplier=0.25),
    *timm_models("RepVGG", "repvgg_a0"),
    *timm_models("RepVGG", "repvgg_b1g4", "repvgg_d2se", width_factor=0.25),
    *timm_models("MobileOne", "mobileone_s0", "mobileone_s1", "mobileone_s4"),
    *timm_models("GENet", "gernet_s"),
    *timm_models("ByobNet", "resnet32ts", "resnext26ts", "seresnext26ts", "eca_resnext26ts"),
    *timm_models("ByobNet", "resnet51q", "resnet61q", width_factor=0.5),
    *timm_models("GC-ResNet", "gcresnext26ts", "gcresnet33ts"),
    *timm_models("BAT-ResNet", "bat_resnext26ts", size=256),
    *timm_models("RegNet", "regnetx_002", "regnety_002", "regnetz_005", "regnetv_040", "regnety_040_sgn"),
    *timm_models("RegNet", "regnetz_b16", "regnetz_b16_evos"),
    *timm_models("CLIP ResNet", "resnet50_clip", img_size=64, width_factor=0.5),
    *timm_models("CLIP ResNet", "resnet50_mlp", width_factor=0.5),
    *timm_models("RepGhost", "repghostnet_050"),
    *timm_models("RepViT", "repvit_m0_9", "repvit_m1"),
    *timm_models("StarNet", "starnet_s050", "starnet_s1"),
    *timm_models("HGNet", "hgnet_tiny", "hgnetv2_b0"),
    *timm_models("InceptionNeXt", "inception_next_atto"),
    *timm_models("ConvNeXt", "convnext_atto", "convnext_atto_ols", "convnext_zepto_rms", "convnextv2_atto"),
    *timm_models("ConvNeXt", "convnext_tiny_hnf", depths=(1, 1, 2, 1), dims=(32, 64, 128, 256)),
    *timm_models("ConvMixer", "convmixer_768_32"),
    *timm_models("FocalNet", "focalnet_tiny_srf", "focalnet_tiny_lrf"),
    *timm_models("Xception", "legacy_xception", "xception41", "xception41p"),
    *timm_models("Inception", "inception_v3", "inception_v4", "inception_resnet_v2", size=96),
    *timm_models("NASNet", "nasnetalarge", size=96, stem_size=32, num_features=1056),
    *timm_models("PNASNet", "pnasnet5large", size=96),
    *timm_models("DenseNet", "densenet121", "densenetblur121d"),
    *timm_models(
        "RDNet",
        "rdnet_tiny",
        num_init_features=32,
        growth_rates=(32, 32, 64, 64),
        num_blocks_list=(2, 2, 2, 2),
        is_downsample_block=(None, True, True, True),
        block_type=("Block", "Block", "BlockESE", "BlockESE"),
    ),
    *timm_models("MambaOut", "mambaout_femto"),
    *timm_models("FasterNet", "fasternet_t0"),
)

TIMM_HYBRID = (
    *timm_models("BoTNet", "botnet26t_256", "eca_botnext26ts_256", "sebotnet33ts_256", **SMALL_IMAGE),
    *timm_models("HaloNet", "halonet26t", "eca_halonext26ts", size=256),
    *timm_models("HaloNet", "haloregnetz_b", size=224),
    *timm_models("LambdaNet", "lambda_resnet26t"),
    *timm_models("LambdaNet", "lambda_resnet26rpt_256", **SMALL_IMAGE),
    *timm_models("FastViT", "fastvit_t8", "fastvit_sa12", "fastvit_mci0"),
    *timm_models("MetaFormer", "poolformer_s12", "poolformerv2_s12", "caformer_s18", "convformer_s18"),
    *timm_models("EfficientFormer", "efficientformer_l1", size=224),
    *timm_models("EfficientFormerV2", "efficientformerv2_s0", **SMALL_IMAGE),
    *timm_models("MobileViT", "mobilevit_xxs", "mobilevitv2_050"),
    *timm_models("EfficientViT (MIT)", "efficientvit_b0"),
    *timm_models(
        "EfficientViT (MIT)",
        "efficientvit_l1",
        widths=(16, 32, 64, 128, 256),
        depths=(1, 1, 1, 2, 2),
        head_widths=(512, 512),
    ),
    *timm_models("EfficientViT (MSRA)", "efficientvit_m0", **SMALL_IMAGE),
    *timm_models("EfficientViM", "efficientvim_m1"),
    *timm_models("CPUBone", "cpubone_nano"),
    *timm_models("LowFormer", "lowformer_b0"),
    *timm_models("EdgeNeXt", "edgenext_xx_small", "edgenext_small_rw"),
    *timm_models("LeViT", "levit_128s", "levit_conv_128s", **SMALL_IMAGE),
    *timm_models("CoAtNet", "coatnet_pico_rw_224", "coatnet_nano_cc_224", "coatnext_nano_rw_224", **SMALL_IMAGE),
    *timm_models("CoAtNet", "coatnet_rmlp_nano_rw_224", **SMALL_IMAGE),
    *timm_models("MaxViT", "maxvit_pico_rw_256", "maxvit_rmlp_pico_rw_256", "maxxvit_rmlp_nano_rw_256", **SMALL_IMAGE),
    *timm_models("MaxViT", "maxxvitv2_nano_rw_256", "maxvit_tiny_pm_256", img_size=64, depths=(1, 1, 2, 1)),
    *timm_models("Visformer", "visformer_tiny", **SMALL_IMAGE),
    *timm_models("CoaT", "coat_lite_tiny", "coat_tiny", **SMALL_IMAGE),
    *timm_models("NextViT", "nextvit_small", depths=(1, 1, 5, 1)),
    *timm_models("SwiftFormer", "swiftformer_xs"),
    *timm_models("TinyViT", "tiny_vit_5m_224"),
    *timm_models("ViTamin", "vitamin_small_224", img_size=64, depth=4),
    *timm_models("SHViT", "shvit_s1"),
    *timm_models("iFormer", "iformer_t"),
    *timm_models("CSATv2", "csatv2"),
    *timm_models("ViT hybrid", "vit_tiny_r_s16_p8_224", "vit_small_resnet26d_224", **SMALL_VIT),
    *timm_models("ViT hybrid", "vit_base_mci_224", img_size=64, depth=1),
)

TIMM_TRANSFORMERS = (
    *timm_models("ViT", "vit_tiny_patch16_224", **SMALL_IMAGE),
    *timm_models("ViT", "vit_small_patch32_224", "flexivit_small", "vit_base_patch32_clip_224", **SMALL_VIT),
    *timm_models("ViT", "vit_base_patch16_siglip_224", "vit_base_patch16_xp_224", **SMALL_VIT),
    *timm_models("ViT", "vit_dlittle_patch16_reg1_gap_256", "vit_base_patch16_rpn_224", **SMALL_VIT),
    *timm_models("ViT", "vit_so150m_patch16_reg4_map_256", **SMALL_VIT),
    *timm_models("ViT", "vit_small_patch14_dinov2", size=56, **SMALL_VIT | {"img_size": 56}),
    *timm_models("ViT, parallel blocks", "vit_small_patch16_18x2_224", "vit_small_patch16_36x1_224", **SMALL_VIT),
    *timm_models("AIMv2", "aimv2_large_patch14_224", size=56, **SMALL_VIT | {"img_size": 56}),
    *timm_models("BEiT", "beit_base_patch16_224", "beitv2_base_patch16_224", "beit3_base_patch16_224", **SMALL_VIT),
    *timm_models("ViT, relative positions", "vit_relpos_small_patch16_224", **SMALL_VIT),
    *timm_models("ViT, relative positions", "vit_srelpos_small_patch16_224", **SMALL_VIT),
    *timm_models("SAM ViT", "samvit_base_patch16_224", **SMALL_VIT),
    *timm_models(
        "NaFlexViT",
        "naflexvit_base_patch16_gap",
        "naflexvit_base_patch16_map",
        embed_dim=192,
        depth=4,
        num_heads=3,
    ),
    *timm_models("EVA", "eva02_tiny_patch14_224", size=56, img_size=56),
    *timm_models("Perception Encoder", "vit_pe_core_tiny_patch16_384", **SMALL_IMAGE),
    *timm_models("DINOv3", "vit_small_patch16_dinov3", **SMALL_VIT),
    *timm_models(
        "ViT, rotary positions", "vit_small_patch16_rope_224", "vit_small_patch16_rope_mixed_224", **SMALL_VIT
    ),
    *timm_models("DeiT", "deit_tiny_patch16_224", "deit_tiny_distilled_patch16_224", **SMALL_IMAGE),
    *timm_models("DeiT", "deit3_small_patch16_224", **SMALL_VIT),
    *timm_models("CaiT", "cait_xxs24_224", img_size=64, depth=6),
    *timm_models("XCiT", "xcit_nano_12_p16_224", **SMALL_IMAGE),
    *timm_models("Swin", "swin_tiny_patch4_window7_224", "swin_s3_tiny_224", **SMALL_SWIN),
    *timm_models("SwinV2", "swinv2_tiny_window8_256", "swinv2_cr_tiny_224", "swinv2_cr_tiny_ns_224", **SMALL_SWIN),
    *timm_models("Twins", "twins_svt_small", img_size=64, depths=(1, 1, 2, 1), embed_dims=(32, 64, 128, 256)),
    *timm_models(
        "Twins",
        "twins_pcpvt_small",
        img_size=64,
        depths=(1, 1, 2, 1),
        embed_dims=(32, 64, 128, 256),
        num_heads=(1, 2, 4, 8),
    ),
    *timm_models("PVTv2", "pvt_v2_b0"),
    *timm_models("PVTv2", "pvt_v2_b2_li", depths=(1, 1, 2, 1), embed_dims=(32, 64, 160, 256)),
    *timm_models("PiT", "pit_ti_224", "pit_ti_distilled_224", **SMALL_IMAGE),
    *timm_models("TNT", "tnt_s_patch16_224", img_size=64, embed_dim=192, depth=4, num_heads_outer=3),
    *timm_models("NesT", "nest_tiny", **SMALL_IMAGE),
    *timm_models("MLP-Mixer", "mixer_s32_224", "gmixer_12_224", **SMALL_IMAGE),
    *timm_models("ResMLP", "resmlp_12_224", **SMALL_IMAGE),
    *timm_models("gMLP", "gmlp_ti16_224", **SMALL_IMAGE),
    *timm_models("VOLO", "volo_d1_224", **SMALL_IMAGE),
    *timm_models("ConViT", "convit_tiny", **SMALL_IMAGE),
    *timm_models("CrossViT", "crossvit_tiny_240", "crossvit_9_dagger_240", size=240),
    *timm_models(
        "DaViT",
        "davit_tiny",
        depths=(1, 1, 2, 1),
        embed_dims=(48, 96, 192, 384),
        num_heads=(3, 6, 12, 24),
    ),
    *timm_models("GCViT", "gcvit_xxtiny", **SMALL_IMAGE),
    *timm_models("Hiera", "hiera_tiny_224", img_size=64, embed_dim=48, stages=(1, 1, 2, 1)),
    *timm_models("SAM 2 Hiera", "sam2_hiera_tiny", "hieradet_small", embed_dim=48, stages=(1, 1, 2, 1)),
    *timm_models("MViTv2", "mvitv2_tiny", **SMALL_IMAGE),
    *timm_models("Sequencer", "sequencer2d_s", img_size=64, layers=(1, 1, 2, 1)),
    *timm_models("DeepSeek ViT", "deepseek_vit_412m", size=56, embed_dim=192, depth=2, num_heads=3),
    *timm_models("Gemma ViT", "gemma4_vit_167m", embed_dim=192, depth=2, num_heads=3),
    *timm_models("Qwen ViT", "qwen3_vit_88m", embed_dim=192, depth=2, num_heads=3),
)

MODELS: tuple[ListedModel, ...] = (*TORCHVISION, *TIMM_CONVOLUTIONAL, *TIMM_HYBRID, *TIMM_TRANSFORMERS)


def matching(patterns: Sequence[str]) -> list[ListedModel]:
    """The networks whose name matches one of the patterns (`*`, `?`); all where there is no pattern."""
    return [model for model in MODELS if not patterns or any(fnmatchcase(model.name, each) for each in patterns)]


def described(model: ListedModel) -> dict[str, object]:
    """What the network is made of: sizes, seconds of its export and its operators with how often each comes."""
    network, images = model.build().requires_grad_(False), model.example()
    with torch.no_grad():
        started = time.perf_counter()
        outputs = network(images)
        forward_seconds = time.perf_counter() - started
    started = time.perf_counter()
    nodes = torch.export.export(network, (images,), strict=False).graph.nodes
    export_seconds = time.perf_counter() - started
    return {
        "name": model.name,
        "outputs": list(outputs.shape),
        "largest_output": float(outputs.abs().max()),
        "params": sum(parameter.numel() for parameter in network.parameters()),
        "macs": transprune.count_macs(network, images),
        "forward_seconds": round(forward_seconds, 3),
        "export_seconds": round(export_seconds, 2),
        "nodes": len(nodes),
        "operators": Counter(str(node.target) for node in nodes if node.op == "call_function"),
    }


def main(patterns: list[str]) -> None:
    if not patterns:
        for model in MODELS:
            print(f"{model.name:<52} {model.family:<24} {model.size}")
        return
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    for model in matching(patterns):
        try:
            print(json.dumps(described(model)), flush=True)
        except Exception as error:  # a library's code may raise anything
            print(json.dumps({"name": model.name, "error": f"{type(error).__name__}: {error}"}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
