"""Updates the attributes of modules whose parameters were cut.

After a cut, a module still names its old number of channels (`nn.Conv2d.in_channels`) or heads, and some forwards read
it. The adapters here compute such attributes from the new parameters, for modules of torch, timm and transformers;
`register_adapter` teaches transprune a module of your own. Where a branch is left out of a block, `LeftOut` takes the
place of its modules.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

Adapter = Callable[[Any, Any], None]
"""Changes the attributes of a cut module in place. Its arguments: the cut module, whose own parameters and submodules
are cut already, and the module of the unpruned network."""

_ADAPTERS: dict[type | str, Adapter] = {}


def register_adapter(kind: type[nn.Module] | str, adapter: Adapter) -> None:
    """Teaches transprune how the attributes of a module follow from its parameters when these are cut.

    Args:
        kind: The class, including its subclasses, or its full name (`package.module.Class`) to avoid importing it.
        adapter: Takes the cut module and the original one, and changes attributes of the cut one in place.

    Example:
        >>> class Attention(nn.Module):
        ...     def __init__(self, width, heads):
        ...         super().__init__()
        ...         self.heads, self.qkv, self.out = heads, nn.Linear(width, 3 * width), nn.Linear(width, width)
        >>> def follow_heads(cut, original):
        ...     cut.heads = cut.out.in_features * original.heads // original.out.in_features
        >>> register_adapter(Attention, follow_heads)
    """
    _ADAPTERS[kind] = adapter


def adapt(cut: nn.Module, original: nn.Module) -> None:
    """Updates the attributes of a cut module by the adapters of its class and base classes."""
    for kind in reversed(type(cut).__mro__):
        for name in (kind, f"{kind.__module__}.{kind.__qualname__}"):
            if name in _ADAPTERS:
                _ADAPTERS[name](cut, original)


class LeftOut(nn.Module):
    """Takes the place of a module that ran in nothing but a branch that is left out; it has no weights.

    Args:
        structure: How many values the module returned, and which of them was the tensor that is handed on; None: that
            tensor alone.
        adds_nothing: Whether it gives zeros, because they are added to what the branch reads. Else it gives the first
            tensor that it is called with.
    """

    def __init__(self, structure: tuple[int, int] | None, *, adds_nothing: bool) -> None:
        super().__init__()
        self.structure, self.adds_nothing = structure, adds_nothing

    def extra_repr(self) -> str:
        return "adds nothing" if self.adds_nothing else "hands on what it reads"

    def forward(self, *inputs: Any, **named: Any) -> Any:
        given = next(each for each in (*inputs, *named.values()) if isinstance(each, Tensor))
        result = torch.zeros_like(given) if self.adds_nothing else given
        if self.structure is None:
            return result
        count, place = self.structure
        return tuple(result if each == place else None for each in range(count))


def _convolution(cut: Any, original: Any) -> None:
    first, second = cut.weight.shape[:2]
    if original.transposed:
        cut.in_channels, cut.out_channels = first, second * cut.groups
    else:
        cut.in_channels, cut.out_channels = second * cut.groups, first


def _linear(cut: Any, original: Any) -> None:
    cut.out_features, cut.in_features = cut.weight.shape


def _batch_norm(cut: Any, original: Any) -> None:
    own = cut.weight if cut.weight is not None else cut.running_mean
    if own is not None:
        cut.num_features = own.shape[0]


def _layer_norm(cut: Any, original: Any) -> None:
    if cut.weight is not None:
        cut.normalized_shape = tuple(cut.weight.shape)


def _group_norm(cut: Any, original: Any) -> None:
    if cut.weight is not None:
        cut.num_channels = cut.weight.shape[0]


def _prelu(cut: Any, original: Any) -> None:
    cut.num_parameters = cut.weight.shape[0]


def _embedding(cut: Any, original: Any) -> None:
    cut.num_embeddings, cut.embedding_dim = cut.weight.shape


def _recurrent(cut: Any, original: Any) -> None:
    rows = cut.weight_ih_l0.shape[0]
    cut.input_size = cut.weight_ih_l0.shape[1]
    cut.hidden_size = rows * original.hidden_size // original.weight_ih_l0.shape[0]
    if original.proj_size:
        cut.proj_size = cut.weight_hr_l0.shape[0]
    cut._init_flat_weights()


def _recurrent_cell(cut: Any, original: Any) -> None:
    cut.hidden_size, cut.input_size = cut.weight_hh.shape[1], cut.weight_ih.shape[1]


def _blur_pool(cut: Any, original: Any) -> None:
    if cut.channels is not None:
        cut.channels = cut.filt.shape[0]


def _heads(cut: Any, original: Any) -> None:
    """Attention whose heads were cut: the output projection says how many are left."""
    now, before = cut.proj.in_features, original.proj.in_features
    for name in ("num_heads", "attn_dim"):
        if hasattr(original, name):
            setattr(cut, name, getattr(original, name) * now // before)


def _cross_stage(cut: Any, original: Any) -> None:
    cut.expand_chs = cut.conv_exp.conv.out_channels


def _res2net_block(cut: Any, original: Any) -> None:
    cut.width = cut.convs[0].in_channels


def _selective_kernel(cut: Any, original: Any) -> None:
    if cut.split_input:
        cut.in_channels = cut.num_paths * cut.paths[0].conv.in_channels


def _mixed_convolution(cut: Any, original: Any) -> None:
    cut.splits = [convolution.in_channels for convolution in cut.values()]


def _rexnet_block(cut: Any, original: Any) -> None:
    cut.in_channels = (cut.conv_exp or cut.conv_dw).conv.in_channels


def _grouped_evo_norm(cut: Any, original: Any) -> None:
    if getattr(original, "groups", None):
        cut.groups = original.groups * cut.weight.shape[0] // original.weight.shape[0]


def _transformer(cut: Any, original: Any) -> None:
    """A network of `transformers` with fewer layers: its configuration and its caches number them."""
    for path, before in original.named_modules():
        owners = [original.get_submodule(path.rpartition(".")[0])] if path else []
        if type(before) is not nn.ModuleList or any(
            getattr(each, "config", None) not in (None, original.config) for each in owners
        ):
            continue
        after = cut.get_submodule(path)
        kept = [place for place, name in enumerate(before._modules) if name in after._modules]
        if len(kept) == len(before):
            continue
        kinds = getattr(original.config, "layer_types", None) or ()
        if len(kinds) == len(before):
            cut.config.layer_types = [kinds[place] for place in kept]
        has_two = any(hasattr(original.config, name) for name in ("decoder_layers", "num_decoder_layers"))
        if not has_two and getattr(original.config, "num_hidden_layers", None) == len(before):
            cut.config.num_hidden_layers = len(kept)
        for place, block in enumerate(after):
            for module in block.modules():
                if isinstance(getattr(module, "layer_idx", None), int):
                    module.layer_idx = place


TIMM: dict[str, Adapter] = {
    "timm.layers.attention.Attention": _heads,
    "timm.layers.attention.AttentionRope": _heads,
    "timm.layers.blur_pool.BlurPool2d": _blur_pool,
    "timm.layers.evo_norm.EvoNorm2dS0": _grouped_evo_norm,
    "timm.layers.mixed_conv2d.MixedConv2d": _mixed_convolution,
    "timm.layers.selective_kernel.SelectiveKernel": _selective_kernel,
    "timm.models.beit.Attention": _heads,
    "timm.models.cspnet.CrossStage": _cross_stage,
    "timm.models.cspnet.CrossStage3": _cross_stage,
    "timm.models.dla.DlaBottle2neck": _res2net_block,
    "timm.models.eva.EvaAttention": _heads,
    "timm.models.res2net.Bottle2neck": _res2net_block,
    "timm.models.rexnet.LinearBottleneck": _rexnet_block,
    "timm.models.swin_transformer.WindowAttention": _heads,
}
"""Modules of timm that store numbers of channels, by name, so that timm is not imported for them."""

TRANSFORMERS: dict[str, Adapter] = {"transformers.modeling_utils.PreTrainedModel": _transformer}
"""The base of all networks of transformers."""

TORCH: dict[type | str, Adapter] = {
    nn.modules.conv._ConvNd: _convolution,
    nn.Linear: _linear,
    nn.modules.batchnorm._NormBase: _batch_norm,
    nn.LayerNorm: _layer_norm,
    nn.GroupNorm: _group_norm,
    nn.PReLU: _prelu,
    nn.Embedding: _embedding,
    nn.RNNBase: _recurrent,
    nn.RNNCellBase: _recurrent_cell,
}
_ADAPTERS.update(TORCH)
_ADAPTERS.update(TIMM)
_ADAPTERS.update(TRANSFORMERS)
