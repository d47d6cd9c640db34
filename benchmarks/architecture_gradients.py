"""How large and how certain the gradients of the architecture parameters are, by sampling temperature.

    python benchmarks/architecture_gradients.py --data parquet:DIR --weights FILE [--network net.py:build]

A supernet that starts from a trained network takes a few steps; then the task's loss alone (no penalty) is
differentiated on one batch after another. Printed for widths and for depths: the mean gradient over the batches (its
size, averaged over all candidates), its standard deviation from batch to batch, and the size of a parameter at which a
weight decay would cancel that gradient.
"""

from __future__ import annotations

import argparse

import torch

import transprune
from transprune.models.by_name import build_model
from transprune.models.weights import load_weights


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="such as parquet:DIR or cifar10:DIR")
    parser.add_argument("--weights", required=True, help="file of the trained network")
    parser.add_argument("--network", default="resnet20")
    parser.add_argument("--image-size", type=int, nargs=3, help="channels, rows and columns to bring the images to")
    parser.add_argument("--temperatures", type=float, nargs="*", default=[10.0, 2.0, 0.5])
    parser.add_argument(
        "--steps", type=int, default=60, help="of the weights before, and of the architecture each time"
    )
    parser.add_argument("--decay", type=float, default=1e-3, help="the weight decay to compare with")
    found = parser.parse_args()
    data = transprune.load_data(found.data, image_size=found.image_size and tuple(found.image_size))
    model = build_model(found.network, classes=len(data.classes), image_channels=data.image_size[0])
    model.load_state_dict(load_weights(found.weights, model).tensors)
    bilevel = trained_supernet(model, data, found.steps)
    print(
        "| temperature | | mean gradient | standard deviation | ratio | decay cancels it at |",
        "|---|---|---|---|---|---|",
        sep="\n",
    )
    for temperature in found.temperatures:
        for name, gradients in zip(("widths", "depths"), gradients_of(bilevel, temperature, found.steps), strict=True):
            mean, deviation = gradients.mean(0).abs().mean(), gradients.std(0).mean()
            print(
                f"| {temperature:g} | {name} | {mean:.2g} | {deviation:.2g} | {mean / deviation:.2f} | "
                f"{mean / found.decay:.2g} |"
            )


def trained_supernet(model: torch.nn.Module, data: transprune.ImageData, steps: int) -> transprune.Bilevel:
    """A search whose weights have taken some steps at the highest temperature."""
    options = transprune.get_preset("medium").search
    space = transprune.inspect(model, torch.zeros(1, *data.image_size))
    limits = (transprune.Budget.parse("macs=0.5").limit(space),)
    bilevel = transprune.Bilevel(model, data, options, space=space, limits=limits)
    for _, batch in zip(range(steps), bilevel.weight_batches, strict=False):
        bilevel.step_weights(batch, options.temperature_start)
    return bilevel


def gradients_of(bilevel: transprune.Bilevel, temperature: float, steps: int) -> list[torch.Tensor]:
    """Gradients of the task's loss with respect to widths and depths, each [steps, choices, candidates]."""
    parameters = list(bilevel.parameters.parameters())
    found = []
    for _ in range(steps):
        batch = next(bilevel.architecture_batches)
        outputs = bilevel.supernet(bilevel.select(temperature), *batch.inputs)
        found.append(torch.autograd.grad(bilevel.task.loss_of(outputs, batch.targets), parameters))
    return [torch.stack(each) for each in zip(*found, strict=True)]


if __name__ == "__main__":
    main()
