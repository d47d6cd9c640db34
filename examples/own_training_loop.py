"""Searches step by step inside a loop of one's own: own logging, own early stop, own end.

    python examples/own_training_loop.py

`transprune.Bilevel` holds a search in progress: the supernet, the architecture parameters, their optimizers and the two
halves of the data. This loop stops as soon as the probabilities are settled, instead of after a number of epochs.
"""

from __future__ import annotations

import torch
import tyro

import transprune


def main(*, budget: str = "macs=0.5", epochs: int = 20, settled: float = 0.2, limit: int | None = None) -> None:
    """Trains a teacher, searches until the candidates are settled, and shrinks.

    Args:
        budget: What the smaller network may cost.
        epochs: Of the teacher's training, and of the search at most.
        settled: Entropy of the probabilities, from 1 (undecided) to 0, at which the search ends.
        limit: Steps an epoch at most.
    """
    data = transprune.load_data("digits")
    short = transprune.TrainingOptions(epochs=epochs, batch_size=64, warm_up_epochs=min(1, epochs / 2))
    teacher = transprune.train(transprune.resnet(20, image_channels=1), data, short)

    space = transprune.inspect(teacher, torch.zeros(1, *data.image_size))
    options = transprune.SearchOptions(
        epochs=epochs,
        batch_size=32,
        learning_rate=0.02,
        architecture_learning_rate=0.05,
        architecture_weight_decay=0.0,
        start="model",
        alignment="pad",
    )
    limits = [transprune.Budget.parse(budget).limit(space)]
    search = transprune.Bilevel(teacher, data, options, space=space, limits=limits)

    for epoch in range(1, epochs + 1):
        temperature, search.meter = search.temperature(epoch), transprune.Meter(search.task)
        pairs = zip(search.weight_batches, search.architecture_batches, strict=False)
        for step, (weights_batch, architecture_batch) in enumerate(pairs):
            if step == limit:
                break
            search.step_weights(weights_batch, temperature)
            search.step_architecture(architecture_batch, temperature)
        expected = float(search.expected_costs[0](search.parameters.probabilities()).detach())
        entropy = search.parameters.entropy()
        print(
            f"epoch {epoch}: loss {search.meter.evaluation().loss:.3f}, {expected:,.0f} MACs expected, "
            f"entropy {entropy:.2f}"
        )
        if entropy < settled:
            break

    architecture = transprune.derive(space, search.probabilities(), limits)
    print(f"in the supernet: {search.validate(architecture).top1:.1f} % top-1 on the architecture's half of the images")
    student = transprune.shrink(teacher, architecture, torch.zeros(1, *data.image_size))
    print(f"the student: {transprune.count_macs(student, torch.zeros(1, *data.image_size)):,} MACs of {limits[0]}")


if __name__ == "__main__":
    tyro.cli(main)
