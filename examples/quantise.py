"""Stores the weights of a smaller network in 8 bits each, with torch's own quantisation: first shrunk, then quantised.

    pip install 'transprune[quantise]'
    transprune run resnet20 --data digits --budget macs=0.5 --preset quick --out runs/first
    python examples/quantise.py --run runs/first --data digits

torch's quantisation of exported programs lives in torchao. Weights and activations become 8-bit integers; what the
activations range over is seen on training images. The weights are folded into the program; to run it faster, compile it
with torch's inductor, whose kernels the quantiser of this example writes for.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
import tyro
from torch import Tensor, nn
from torch.fx import GraphModule
from torchao.quantization.pt2e import allow_exported_model_train_eval
from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
from torchao.quantization.pt2e.quantizer.x86_inductor_quantizer import (
    X86InductorQuantizer,
    get_default_x86_inductor_quantization_config,
)

import transprune


def quantised(network: nn.Module, batches: list[Tensor]) -> nn.Module:
    """The network as a program with 8-bit weights and activations.

    Args:
        network: In evaluation mode; untouched.
        batches: Images [batch, channels, rows, columns] that show what the activations range over.
    """
    any_batch = ({0: torch.export.Dim("batch", min=1)},)
    program = torch.export.export(network, (batches[0],), dynamic_shapes=any_batch, strict=False).module()
    quantiser = X86InductorQuantizer().set_global(get_default_x86_inductor_quantization_config())
    watched = prepare_pt2e(program, quantiser)
    with torch.no_grad():
        for images in batches:
            watched(images)
    return allow_exported_model_train_eval(without_unused(convert_pt2e(watched)))


def without_unused(program: GraphModule) -> GraphModule:
    """Drops the parameters that no operator reads: the conversion leaves the weights in float behind."""
    read = {node.target for node in program.graph.nodes if node.op == "get_attr"}
    for name in [name for name, _ in program.named_parameters() if name not in read]:
        owner, _, attribute = name.rpartition(".")
        delattr(program.get_submodule(owner), attribute)
    return program


def weight_bytes(network: nn.Module) -> int:
    """Bytes of all parameters and buffers."""
    return sum(tensor.numel() * tensor.element_size() for tensor in network.state_dict().values())


def main(*, run: Path = Path("runs/first"), data: str = "digits") -> nn.Module:
    """Quantises the student of a run, and compares it with itself in float.

    Args:
        run: A finished run of transprune's own networks.
        data: What it was trained on.
    """
    described = json.loads((run / "architecture.json").read_text())
    images = transprune.load_data(data, image_size=tuple(described["model"]["input_size"]))
    student = transprune.load(run)
    loader = transprune.make_loader(images.train, images, batch_size=64, train=False, seed=0, device="cpu")
    small = quantised(student, [batch for batch, _ in list(loader)[:8]])
    for name, network in (("float", student), ("8 bits", small)):
        top1 = transprune.evaluate(network, images).top1
        print(f"{name}: {weight_bytes(network):,} bytes of weights, {top1:.1f} % top-1")
    return small


if __name__ == "__main__":
    tyro.cli(main)
