"""What a trained network loses when it is made smaller without training, and the processor time that takes.

    python benchmarks/compression.py net.py:build trained.pth parquet:cifar10 --normalisation imagenet \
        --budgets macs=0.73 macs=0.5 macs=0.25 --seeds 0 1 2 --out benchmarks/scores/resnet20.json

For each seed, which decides the samples, the first budget is compressed; the others are derived from its result. Every
result is written as soon as it is known, and one that the file holds already is left out. Seconds are those of the
processor, without reading the data and without the evaluation; run it on one thread.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import transprune
from transprune.models.by_name import build_model
from transprune.models.weights import load_weights


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("weights")
    parser.add_argument("data")
    parser.add_argument("--budgets", nargs="+", default=["macs=0.5"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--samples", type=int, default=512)
    parser.add_argument("--normalisation", choices=("imagenet", "none"), default=None)
    parser.add_argument("--out", type=Path, required=True)
    asked = parser.parse_args()
    found = json.loads(asked.out.read_text()) if asked.out.exists() else {"results": []}
    known = {(each["seed"], each["budget"]) for each in found["results"]}

    data = transprune.load_data(asked.data, mean=asked.normalisation, std=asked.normalisation)
    model = build_model(asked.model, classes=len(data.classes), image_channels=data.image_size[0])
    model.load_state_dict(load_weights(asked.weights, model).tensors)
    found |= {"model": asked.model, "data": data.name, "samples": asked.samples}
    if "teacher" not in found:
        found["teacher"] = transprune.evaluate(model, data).top1
    for seed in asked.seeds:
        first: transprune.Compression | None = None
        for budget in asked.budgets:
            if (seed, budget) in known:
                continue
            begun, is_derived = time.process_time(), first is not None
            made = transprune.compress(model, data, budget, samples=asked.samples, scores=first or (), seed=seed)
            seconds, first = time.process_time() - begun, first or made
            found["results"].append(
                {
                    "seed": seed,
                    "budget": budget,
                    "is_derived": is_derived,
                    "top1": transprune.evaluate(made.student, data).top1,
                    "moved": made.moved,
                    "spent": made.spent,
                    "limits": [limit.most for limit in made.limits],
                    "seconds": seconds,
                    "architecture": made.architecture.to_json(),
                }
            )
            print(found["results"][-1], flush=True)
            asked.out.parent.mkdir(parents=True, exist_ok=True)
            asked.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
