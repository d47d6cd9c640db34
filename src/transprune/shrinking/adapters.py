"""Updates the attributes of modules whose parameters were cut.

After a cut, a module still names its old number of channels (`nn.Conv2d.in_channels`) or heads, and some forwards read
it. The adapters here compute such attributes from the new parameters, for modules of torch, timm, transformers and
diffusers; `register_adapter` teaches transprune a module of your own. Where a branch is left out of a block, `LeftOut`
takes the place of its modules. Torch's own attention cannot have fewer heads than its width asks for;
`AttentionOfHeads` can.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from transprune.reading.networks import names_of
from transprune.runtime.structures import is_cache

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
    kinds = type(cut)
    for kind, name in zip(reversed(kinds.__mro__), names_of(kinds), strict=True):
        for known in (kind, name):
            if known in _ADAPTERS:
                _ADAPTERS[known](cut, original)


@dataclass(frozen=True)
class Returned:
    """What a module returned, where that was several values."""

    tensor: int
    """Place of the tensor that is handed on."""
    inputs: tuple[int | str | None, ...]
    """For each value, the place or the name of the input that it is; None if it is none of them."""


OTHER_SEQUENCES = ("key_value_states", "encoder_hidden_states")
"""Names of what attention of `transformers` reads beside its own sequence; those tokens are not counted by caches."""


PLACES = ("layer_idx", "layer_id")
"""Attributes of modules of `transformers` that say which layer of a cache is theirs."""


def _has_tokens(cache: object, place: int) -> bool:
    """Whether a layer of a cache counts tokens; that of a convolution or a state does not."""
    layers = getattr(cache, "layers", ())
    return place >= len(layers) or hasattr(layers[place], "update")


class LeftOut(nn.Module):
    """Takes the place of a module that ran in nothing but a branch that is left out; it has no weights.

    A cache that `transformers` hands it holds the number of tokens as ever, though nothing of them: what comes next is
    placed and masked by that number, which the first layer of a cache is asked for.

    Args:
        returned: What the module returned, if that was several values; None: one tensor. Inputs among the values are
            handed on as they are, since T5's attention, say, gives the next block the bias of its positions.
        adds_nothing: Whether it gives zeros, because they are added to what the branch reads. Else it gives the first
            tensor that it is called with.
        replaced: The module itself. Its plain values stay, because the forward around it may read them; its parameters
            are None.
    """

    def __init__(self, returned: Returned | None, *, adds_nothing: bool, replaced: nn.Module) -> None:
        super().__init__()
        for name, value in vars(replaced).items():
            if isinstance(value, bool | int | float | str) and name not in vars(self):
                setattr(self, name, value)
        for name in replaced._parameters:
            self.register_parameter(name, None)
        numbers = [getattr(module, name, None) for module in replaced.modules() for name in PLACES]
        self.layer_idx = next((number for number in numbers if isinstance(number, int)), None)
        self.returned, self.adds_nothing = returned, adds_nothing

    def extra_repr(self) -> str:
        return "adds nothing" if self.adds_nothing else "hands on what it reads"

    def forward(self, *inputs: Any, **named: Any) -> Any:
        given = next(each for each in (*inputs, *named.values()) if isinstance(each, Tensor))
        if self.layer_idx is not None and not any(named.get(name) is not None for name in OTHER_SEQUENCES):
            for cache in filter(is_cache, (*inputs, *named.values())):
                of_own = getattr(cache, "self_attention_cache", cache)
                if _has_tokens(of_own, self.layer_idx):
                    nothing = given.new_zeros(given.shape[0], 1, given.shape[-2], 1)
                    of_own.update(nothing, nothing, self.layer_idx)
        result = torch.zeros_like(given) if self.adds_nothing else given
        if self.returned is None:
            return result
        given_by: dict[Any, Any] = {**dict(enumerate(inputs)), **named}
        others = [None if key is None else given_by.get(key) for key in self.returned.inputs]
        return tuple(result if place == self.returned.tensor else each for place, each in enumerate(others))


class AttentionOfHeads(nn.MultiheadAttention):
    """Torch's attention with heads that together are narrower, or wider, than what it reads.

    Torch takes the width of a head from that of its input. Here the weights decide, and all else is as in torch:
    parameters, arguments and results. There is no fused path.
    """

    def forward(  # noqa: PLR0917 - torch's own arguments
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        is_batched = query.dim() == 3
        given = [query, key, value]
        if not is_batched:
            given = [each[None] for each in given]
            key_padding_mask = None if key_padding_mask is None else key_padding_mask[None]
        elif not self.batch_first:
            given = [each.transpose(0, 1) for each in given]
        asked, keys, values = (F.linear(*each) for each in zip(given, *self._projections(), strict=True))
        if self.bias_k is not None and self.bias_v is not None:
            keys, values = (
                torch.cat([each, bias.expand(len(each), -1, -1)], dim=1)
                for each, bias in ((keys, self.bias_k), (values, self.bias_v))
            )
        heads = [each.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for each in (asked, keys, values)]
        if self.add_zero_attn:
            heads[1:] = [F.pad(each, (0, 0, 0, 1)) for each in heads[1:]]
        mask = self._mask(attn_mask, key_padding_mask, heads[0], heads[1])
        dropout = self.dropout if self.training else 0.0
        weights = None
        if need_weights:
            scores = heads[0] @ heads[1].transpose(-2, -1) * self.head_dim**-0.5
            weights = F.dropout((scores if mask is None else scores + mask).softmax(-1), dropout)
            found = weights @ heads[2]
            weights = weights.mean(1) if average_attn_weights else weights
        else:
            asked, keys, values = heads
            found = F.scaled_dot_product_attention(asked, keys, values, mask, dropout, scale=self.head_dim**-0.5)
        found = self.out_proj(found.transpose(1, 2).flatten(2))
        if not is_batched:
            return found[0], None if weights is None else weights[0]
        return found if self.batch_first else found.transpose(0, 1), weights

    def _projections(self) -> tuple[Any, Any]:
        """Weights and biases of query, key and value."""
        separate = (self.q_proj_weight, self.k_proj_weight, self.v_proj_weight)
        weights = separate if separate[0] is not None else self.in_proj_weight.chunk(3)
        return weights, (None,) * 3 if self.in_proj_bias is None else self.in_proj_bias.chunk(3)

    def _mask(self, between: Tensor | None, padding: Tensor | None, query: Tensor, key: Tensor) -> Tensor | None:
        """What is added to the scores [samples, heads, queries, keys]; nothing hides the keys that are added here."""
        if between is not None and between.dim() == 3:
            between = between.unflatten(0, (-1, self.num_heads))
        padding = None if padding is None else padding[:, None, None]
        total: Tensor | None = None
        for mask in (between, padding):
            if mask is not None:
                none = torch.zeros(mask.shape, dtype=query.dtype, device=mask.device)
                added = none.masked_fill(mask, -torch.inf) if mask.dtype == torch.bool else mask
                added = F.pad(added, (0, key.shape[-2] - added.shape[-1]))
                total = added if total is None else total + added
        return total


def _attention(cut: Any, original: Any) -> None:
    """Torch's attention: it is of torch's own class where its heads together are as wide as what it reads."""
    if type(original) not in (nn.MultiheadAttention, AttentionOfHeads):
        return
    width, before = cut.out_proj.in_features, original.out_proj.in_features
    if original.num_heads > 1:
        cut.num_heads = original.num_heads * width // before
    first = cut.q_proj_weight if cut.in_proj_weight is None else cut.in_proj_weight
    cut.embed_dim = first.shape[1]
    others = (first, first) if cut.in_proj_weight is not None else (cut.k_proj_weight, cut.v_proj_weight)
    cut.kdim, cut.vdim = (each.shape[1] for each in others)
    if width != cut.embed_dim or width != cut.num_heads * cut.head_dim:
        cut.__class__ = AttentionOfHeads


def _encoder(cut: Any, original: Any) -> None:
    cut.num_layers = len(cut.layers)


def follow_left_out(network: nn.Module) -> None:
    """Updates what reads modules of which some are left out."""
    for module in network.modules():
        if any(isinstance(each, LeftOut | AttentionOfHeads) for each in module.modules()):
            if isinstance(module, nn.TransformerEncoder):
                module.use_nested_tensor = False  # torch's encoders run their parts one by one
            elif isinstance(module, nn.TransformerEncoderLayer):
                module.activation_relu_or_gelu = 0  # the fused layer knows these two


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
    """A network of `transformers`.

    With fewer layers its configuration and its caches number them, and with fewer queries for each key its attention,
    which reads that number or not, by what it is called with.
    """
    left = dict(cut.named_modules())
    for path, after in left.items():
        if isinstance(getattr(after, "num_key_value_groups", None), int) and hasattr(after, "k_proj"):
            before = original.get_submodule(path)
            queries, keys = after.q_proj.out_features, after.k_proj.out_features
            shared = before.num_key_value_groups * queries * before.k_proj.out_features
            after.num_key_value_groups = shared // (before.q_proj.out_features * keys)
    for path, before in original.named_modules():
        parent, _, name = path.rpartition(".")
        if not isinstance(before, nn.ModuleList) or parent not in left:
            continue
        if getattr(original.get_submodule(parent), "config", None) not in (None, original.config):
            continue
        after = left[parent]._modules[name]
        kept = [place for place, name in enumerate(before._modules) if name in after._modules]
        if len(kept) == len(before):
            continue
        has_two = any(hasattr(original.config, name) for name in ("decoder_layers", "num_decoder_layers"))
        if not has_two and getattr(original.config, "num_hidden_layers", None) == len(before):
            cut.config.num_hidden_layers = len(kept)
        kinds = getattr(original.config, "layer_types", None) or ()
        wanted = [kinds[place] for place in kept] if len(kinds) == len(before) else []
        if wanted and list(cut.config.layer_types) != wanted:  # where all are of one kind, the number says them
            cut.config.layer_types = wanted
        for place, block in enumerate(after):
            for module in block.modules():
                for name in PLACES:
                    if isinstance(getattr(module, name, None), int):
                        setattr(module, name, place)


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


def _falcon_attention(cut: Any, original: Any) -> None:
    """One projection makes all queries, and a key and a value for some of them."""
    cut.num_heads = cut.dense.in_features // cut.head_dim
    cut.num_kv_heads = (cut.query_key_value.out_features // cut.head_dim - cut.num_heads) // 2


def _phi_attention(cut: Any, original: Any) -> None:
    """One projection makes queries, keys and values; how many of it are queries is read from the configuration."""
    heads = cut.o_proj.in_features // cut.head_dim
    cut.num_key_value_heads = (cut.qkv_proj.out_features // cut.head_dim - heads) // 2
    cut.num_key_value_groups = heads // cut.num_key_value_heads
    if heads != cut.config.num_attention_heads:  # its own one: other layers may keep more heads
        cut.config = copy.copy(cut.config)
        cut.config.num_attention_heads = heads


class ReducedSequence(nn.Module):
    """SegFormer's convolution over tokens, whose outputs may be fewer than what it reads."""

    sequence_reduction: nn.Conv2d
    layer_norm: nn.LayerNorm

    def forward(self, tokens: Tensor, height: int, width: int) -> Tensor:
        image = tokens.transpose(1, 2).unflatten(-1, (height, width))
        return cast(Tensor, self.layer_norm(self.sequence_reduction(image).flatten(2).transpose(1, 2)))


def _sequence_reduction(cut: Any, original: Any) -> None:
    if cut.sequence_reduction.in_channels != cut.sequence_reduction.out_channels:
        cut.__class__ = ReducedSequence


class AttentionOfOneHead(nn.Module):
    """SegFormer's attention with a single head, whose values may be narrower than its keys."""

    q_proj: nn.Linear
    k_proj: nn.Linear
    v_proj: nn.Linear
    o_proj: nn.Linear
    sequence_reduction: nn.Module
    sequence_reduction_ratio: int
    scaling: float
    attention_dropout: float

    def forward(
        self, tokens: Tensor, height: int, width: int, attention_mask: Tensor | None = None, **others: Any
    ) -> tuple[Tensor, None]:
        read = self.sequence_reduction(tokens, height, width) if self.sequence_reduction_ratio > 1 else tokens
        query, key, value = (each[:, None] for each in (self.q_proj(tokens), self.k_proj(read), self.v_proj(read)))
        dropout = self.attention_dropout if self.training else 0.0
        found = F.scaled_dot_product_attention(query, key, value, attention_mask, dropout, scale=self.scaling)
        return self.o_proj(found[:, 0]), None


def _segformer_attention(cut: Any, original: Any) -> None:
    if original.num_attention_heads == 1 and cut.v_proj.out_features != original.v_proj.out_features:
        cut.__class__ = AttentionOfOneHead


def _segformer_classifier(cut: Any, original: Any) -> None:
    cut.config.hidden_sizes = [*original.config.hidden_sizes[:-1], cut.classifier.in_features]


SEGFORMER = "transformers.models.segformer.modeling_segformer.Segformer"
TRANSFORMERS: dict[str, Adapter] = {
    "transformers.modeling_utils.PreTrainedModel": _transformer,
    "transformers.models.falcon.modeling_falcon.FalconAttention": _falcon_attention,
    "transformers.models.phi3.modeling_phi3.Phi3Attention": _phi_attention,
    "transformers.models.phi4_multimodal.modeling_phi4_multimodal.Phi4MultimodalAttention": _phi_attention,
    f"{SEGFORMER}Attention": _segformer_attention,
    f"{SEGFORMER}ForImageClassification": _segformer_classifier,
    f"{SEGFORMER}SequenceReduction": _sequence_reduction,
}
"""The base of all networks of transformers, and some of their modules."""


def _sampling(cut: Any, original: Any) -> None:
    """A convolution between resolutions, whose forward asserts how many channels it reads."""
    if isinstance(cut.conv, nn.modules.conv._ConvNd):
        cut.channels, cut.out_channels = cut.conv.in_channels, cut.conv.out_channels


def _diffusion_attention(cut: Any, original: Any) -> None:
    cut.inner_dim, cut.inner_kv_dim = cut.to_q.out_features, getattr(cut.to_k, "out_features", cut.inner_kv_dim)
    cut.heads = original.heads * cut.inner_dim // original.inner_dim


DIFFUSERS: dict[str, Adapter] = {
    "diffusers.models.attention_processor.Attention": _diffusion_attention,
    "diffusers.models.downsampling.Downsample2D": _sampling,
    "diffusers.models.upsampling.Upsample2D": _sampling,
}
"""Some modules of diffusers."""


def _halves(cut: Any, original: Any) -> None:
    """Blocks of YOLO that cut what their first convolution makes in two."""
    cut.c = cut.cv1.conv.out_channels // 2


def _area_attention(cut: Any, original: Any) -> None:
    cut.all_head_dim = cut.proj.conv.in_channels
    cut.num_heads = cut.all_head_dim // cut.head_dim


BLOCKS = "ultralytics.nn.modules.block"
ULTRALYTICS: dict[str, Adapter] = {
    f"{BLOCKS}.AAttn": _area_attention,
    f"{BLOCKS}.C2f": _halves,
    f"{BLOCKS}.C2fAttn": _halves,
    f"{BLOCKS}.ELAN1": _halves,
    f"{BLOCKS}.RepNCSPELAN4": _halves,
}
"""Modules of ultralytics that store numbers of channels or heads."""

TORCH: dict[type | str, Adapter] = {
    nn.modules.conv._ConvNd: _convolution,
    nn.Linear: _linear,
    nn.modules.batchnorm._NormBase: _batch_norm,
    nn.LayerNorm: _layer_norm,
    nn.GroupNorm: _group_norm,
    nn.PReLU: _prelu,
    nn.Embedding: _embedding,
    nn.MultiheadAttention: _attention,
    nn.TransformerEncoder: _encoder,
    nn.RNNBase: _recurrent,
    nn.RNNCellBase: _recurrent_cell,
}
_ADAPTERS.update(TORCH)
_ADAPTERS.update(TIMM)
_ADAPTERS.update(TRANSFORMERS)
_ADAPTERS.update(DIFFUSERS)
_ADAPTERS.update(ULTRALYTICS)
