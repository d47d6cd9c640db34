"""Runs an exported student on images, with onnxruntime, numpy and Pillow alone: no torch, no transprune.

    pip install onnxruntime numpy pillow
    python deploy_onnx.py RUN IMAGE...

Copy this file, and `student.onnx` and `architecture.json` of the run, to where the network is to work.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import onnxruntime
from PIL import Image


class Classifier:
    """A student with the preparation of its images."""

    def __init__(self, run: Path, threads: int = 1) -> None:
        described = json.loads((run / "architecture.json").read_text())
        self.channels, *self.size = described["model"]["input_size"]
        self.mean, self.std = (np.float32(described["preprocessing"][name]) for name in ("mean", "std"))
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        self.session = onnxruntime.InferenceSession(
            str(run / "student.onnx"), options, providers=["CPUExecutionProvider"]
        )

    def pixels(self, file: Path) -> np.ndarray:
        """One image, normalised as in training [channels, rows, columns]."""
        rows, columns = self.size
        image = Image.open(file).convert("L" if self.channels == 1 else "RGB").resize((columns, rows))
        values = np.float32(image).reshape(rows, columns, self.channels) / 255
        return ((values - self.mean) / self.std).transpose(2, 0, 1)

    def __call__(self, files: list[Path]) -> np.ndarray:
        """The probability of every class for every image [images, classes]."""
        images = np.stack([self.pixels(file) for file in files])
        (logits,) = self.session.run(None, {"images": images})
        powers = np.exp(logits - logits.max(axis=1, keepdims=True))
        return powers / powers.sum(axis=1, keepdims=True)


def main() -> None:
    """Prints the most probable class of every image."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("images", type=Path, nargs="+")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    classifier = Classifier(arguments.run, arguments.threads)
    for file, probabilities in zip(arguments.images, classifier(arguments.images), strict=True):
        print(f"{file}: class {probabilities.argmax()} ({probabilities.max():.0%})")


if __name__ == "__main__":
    main()
