"""Networks of transformers from a folder or from the Hub, without code of their own and without pickle."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from transprune.errors import ExportError, ModelError, TranspruneError, first_line
from transprune.runtime.files import disk_errors, expanded
from transprune.runtime.structures import called, copied, tensors_in

HUGGING_FACE = "hf:"
"""Begins the names of such networks: `hf:FOLDER`, or `hf:OWNER/NAME` for one of the Hub."""
PICKLED = ("pytorch_model*.bin", "*.pt", "*.pth", "*.ckpt")
"""Files of weights that are not read."""


def is_hugging_face(name: str) -> bool:
    """Whether a network is named as one of transformers; such a network is a trained one."""
    return name.startswith(HUGGING_FACE)


@dataclass(frozen=True)
class Origin:
    """A folder with a network of transformers, or a repository of the Hub."""

    name: str
    """With `hf:` before it."""

    @property
    def place(self) -> str:
        """What transformers reads from: the folder if there is one, else the name on the Hub."""
        name = self.name.removeprefix(HUGGING_FACE)
        folder = expanded(name) if name else Path()
        return str(folder) if name and os.path.isdir(folder) else name

    def config(self) -> Any:
        """The configuration.

        Raises:
            ModelError: There is none, or it cannot be had.
        """
        with self.reading("the configuration") as transformers:
            return transformers.AutoConfig.from_pretrained(self.place, trust_remote_code=False)

    def built(self, *, classes: int | None, image_channels: int | None) -> nn.Module:
        """The network that the configuration names, with new weights.

        Args:
            classes: Outputs of its classifier; None: as many as it has.
            image_channels: Channels of the images; None: no images are given.

        Raises:
            ModelError: The configuration names no class of transformers, or it cannot be built for these images.
        """
        config = self.config()
        build = self._class(config)
        if classes is not None and getattr(config, "num_labels", classes) != classes:
            config.num_labels = classes
        channels = getattr(config, "num_channels", image_channels)
        if image_channels is not None and channels != image_channels:
            raise ModelError(
                f"cannot build the model {self.name!r} for images with {image_channels} channels: it reads {channels}; "
                f"bring the images to its size (--image-size {channels} ROWS COLUMNS)"
            )
        with self.reading("the network"):
            network: nn.Module = build(config)
        return network

    def tensors(self) -> dict[str, Tensor]:
        """The trained weights, in float32, by the names that the network has for them.

        Raises:
            ModelError: There are none in safetensors, or they are damaged.
        """
        build = self._class(self.config())
        self._refuse_pickled()
        with self.reading("the weights"):
            network = build.from_pretrained(
                self.place, trust_remote_code=False, use_safetensors=True, dtype=torch.float32
            )
        return dict(network.state_dict())

    def tokenizer(self, vocabulary: int | None = None) -> Any:
        """What makes tokens of texts.

        Args:
            vocabulary: Tokens that the network knows; None: they are not counted.

        Raises:
            ModelError: There is none, or it knows more tokens than the network.
        """
        with self.reading("the tokenizer") as transformers:
            found = transformers.AutoTokenizer.from_pretrained(self.place, trust_remote_code=False)
        if vocabulary is not None and len(found) > vocabulary:
            raise ModelError(
                f"cannot use the tokenizer of {self.name!r}: it has {len(found)} tokens, and the network knows "
                f"{vocabulary}; expected the tokenizer that the network was trained with"
            )
        return found

    def companions(self) -> list[Any]:
        """The tokenizer, and what prepares images or sounds, where there are any."""
        found = []
        with self.reading("what belongs to it") as transformers:
            for kind in ("AutoTokenizer", "AutoImageProcessor", "AutoFeatureExtractor"):
                loader = getattr(transformers, kind)
                try:
                    found.append(loader.from_pretrained(self.place, trust_remote_code=False))
                except (OSError, ValueError, KeyError, ImportError, TypeError):  # it has none, or a library is missing
                    continue
        return found

    def image_statistics(self) -> Mapping[str, Any]:
        """`mean` and `std` of the images that it was trained on, as far as its image processor says them."""
        file = Path(self.place, "preprocessor_config.json")
        if not file.is_file():
            return {}
        try:
            said = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return {"mean": said.get("image_mean"), "std": said.get("image_std")} if isinstance(said, dict) else {}

    def licence(self) -> str:
        """The licence that its model card names; empty if it names none."""
        file = Path(self.place, "README.md")
        if not file.is_file():
            return ""
        lines = file.read_text(encoding="utf-8", errors="replace").splitlines()
        front = lines[1 : lines.index("---", 1)] if lines[:1] == ["---"] and "---" in lines[1:] else []
        return next((line.partition(":")[2].strip() for line in front if line.startswith("license:")), "")

    def _class(self, config: Any) -> Any:
        import transformers

        named = list(getattr(config, "architectures", None) or ())
        found = next((getattr(transformers, name) for name in named if hasattr(transformers, name)), None)
        if found is None:
            said = f"names {' and '.join(named)}, which transformers does not have" if named else "names no class"
            raise ModelError(
                f"cannot build the model {self.name!r}: its config.json {said}; expected under 'architectures' a class "
                "of transformers, as `save_pretrained` writes it, such as LlamaForCausalLM (code in the folder is not "
                "run)"
            )
        return found

    def _refuse_pickled(self) -> None:
        folder = Path(self.place)
        if not folder.is_dir() or any(folder.glob("*.safetensors")):
            return
        pickled = sorted(file.name for pattern in PICKLED for file in folder.glob(pattern))
        if pickled:
            raise ModelError(
                f"cannot read the weights of {self.name!r}: they are pickled ({pickled[0]}), which may run code; "
                "expected model.safetensors; where the folder is trusted, `AutoModel….from_pretrained(FOLDER)"
                ".save_pretrained(OTHER)` writes it"
            )
        raise ModelError(
            f"cannot read the weights of {self.name!r}: there are none in the folder; expected model.safetensors "
            "beside config.json, as `save_pretrained` writes them"
        )

    @contextmanager
    def reading(self, what: str) -> Iterator[Any]:
        """Transformers, quiet; what it raises becomes a sentence with the way out.

        Raises:
            ModelError: Something was raised.
        """
        try:
            with _quiet() as transformers:
                yield transformers
        except ModuleNotFoundError as error:
            if error.name != "transformers":
                raise
            raise ModelError(
                f"cannot build the model {self.name!r}: transformers is not installed; pip install "
                "'transprune[transformers]'"
            ) from error
        except TranspruneError:
            raise
        except Exception as error:  # transformers and the Hub's client raise all kinds
            raise ModelError(f"cannot read {what} of {self.name!r}: {self._problem(error)}") from error

    def _problem(self, error: Exception) -> str:
        """What went wrong, in words."""
        if os.path.isdir(self.place):
            return (
                f"{first_line(error)}; expected a folder as `save_pretrained` writes it, with config.json and "
                "model.safetensors"
            )
        kinds = {type(each).__name__ for each in _causes(error)}
        if "GatedRepoError" in kinds:
            return (
                "it is given only to those who accept its terms; accept them on its page of the Hub and log in "
                "(`hf auth login`), or name a folder that holds it (hf:FOLDER)"
            )
        if "file named" in str(error) and "safetensors" in str(error):
            return (
                "the repository has no model.safetensors, and pickled weights, which may run code, are not read; "
                "expected one that has; where it is trusted, "
                "`AutoModel….from_pretrained(NAME).save_pretrained(FOLDER)` makes a folder (hf:FOLDER)"
            )
        if kinds & {"RepositoryNotFoundError", "HFValidationError"} or "/" not in self.place:
            return (
                f"there is no folder '{self.place}' (looked from {Path.cwd()}) and no such repository on the Hub; "
                "expected hf:FOLDER or hf:OWNER/NAME; a private one needs `hf auth login`"
            )
        return (
            f"there is no folder '{self.place}' (looked from {Path.cwd()}), and the Hub does not give it "
            f"({first_line(error)}); expected hf:FOLDER or hf:OWNER/NAME; where this machine has no network, download "
            f"it elsewhere (`hf download {self.place} --local-dir FOLDER`) and name the folder"
        )


CLOSE = 1e-5
"""How far outputs of a network that was written and read again may be off."""


def export_pretrained(
    network: nn.Module,
    folder: str | Path,
    example: Any,
    *,
    origin: str | None = None,
    card: str = "",
    push_to_hub: str | None = None,
) -> Path:
    """Writes a network of transformers to a folder that `from_pretrained` reads without code of ours, and tries it.

    Args:
        network: As `configured` gives it; untouched.
        folder: Where to; made if missing.
        example: Inputs, on which what is read again is compared.
        origin: `hf:FOLDER_OR_NAME` whose tokenizer or image processor is written beside it.
        card: A model card, README.md.
        push_to_hub: Name of a repository of the Hub, OWNER/NAME, to which the folder is uploaded; made if missing.

    Raises:
        ModelError: Its class is not one of transformers, or the origin cannot be read.
        ExportError: What is read again computes something else, or the Hub does not take it.
        RunFolderError: The folder cannot be written.
    """
    path, build = expanded(str(folder)), type(network)
    if not build.__module__.startswith("transformers.") or not hasattr(network, "save_pretrained"):
        raise ModelError(
            f"cannot write {build.__name__} as a folder of transformers: expected one of its classes, as "
            "`transprune.configured` gives them where a space is tied by the configuration (--tie config)"
        )
    source = None if origin is None else Origin(origin)
    if source is not None and path.exists() and path.resolve() == Path(source.place).resolve():
        raise ExportError(f"cannot write to '{path}': that is where the unpruned network is; expected another folder")
    with disk_errors("write", path), _quiet():
        network.save_pretrained(path)  # type: ignore[operator]
        for each in () if source is None else source.companions():
            each.save_pretrained(path)
        if card:
            (path / "README.md").write_text(card, encoding="utf-8")
        again = build.from_pretrained(path, use_safetensors=True).eval()  # type: ignore[attr-defined]
    _check_same(network, again, example, path)
    if push_to_hub is not None:
        _upload(path, push_to_hub)
    return path


@torch.no_grad()
def _check_same(network: nn.Module, again: nn.Module, example: Any, path: Path) -> None:
    outputs = [
        [each for each in tensors_in(called(one, example)) if each.is_floating_point()]
        for one in (copied(network).eval(), again)
    ]
    worst = max((float((one - other).abs().max()) for one, other in zip(*outputs, strict=True)), default=0.0)
    if not worst <= CLOSE:
        raise ExportError(
            f"cannot use the folder '{path}': what is read from it computes outputs that differ by {worst:.2g}; "
            f"expected at most {CLOSE:g}; its class keeps something that its configuration does not say"
        )


def _upload(path: Path, name: str) -> None:
    from huggingface_hub import HfApi

    try:
        hub = HfApi()
        hub.create_repo(name, exist_ok=True)
        hub.upload_folder(repo_id=name, folder_path=path)
    except Exception as error:  # of the network, and of the Hub
        raise ExportError(
            f"cannot upload '{path}' to the Hub as {name!r}: {first_line(error)}; the folder is whole; log in "
            f"(`hf auth login`) and upload it (`hf upload {name} {path}`)"
        ) from error


@contextmanager
def _quiet() -> Iterator[Any]:
    """Transformers, without its warnings and bars."""
    import transformers

    logging = transformers.utils.logging
    level, is_shown = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield transformers
    finally:
        logging.set_verbosity(level)
        if is_shown:
            logging.enable_progress_bar()


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
