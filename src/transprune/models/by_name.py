"""Networks by name: the paper's ResNets, those of torchvision and timm, and those built by the user's code."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from transprune.errors import ModelError, expected_one_of, first_line
from transprune.models.hugging_face import Origin, is_hugging_face
from transprune.models.resnet import IMAGENET_BLOCKS, Halving, resnet
from transprune.runtime import UserFunction
from transprune.runtime.structures import outline

RESNET_DEPTHS = (20, 32, 44, 56, 110, 164, *IMAGENET_BLOCKS)
STRIDED = "-strided"
"""Suffix of the names of ResNets whose shortcuts halve the resolution by stride, as torchvision's do."""
NAMES = (
    *(f"resnet{depth}" for depth in RESNET_DEPTHS),
    *(f"resnet{depth}{STRIDED}" for depth in IMAGENET_BLOCKS),
)
LIBRARIES = ("torchvision", "timm", "hf", "ultralytics")
FORMS = (
    *NAMES,
    "torchvision:NAME",
    "timm:NAME",
    "hf:FOLDER_OR_NAME",
    "ultralytics:FILE",
    "FILE.py:FUNCTION",
    "package.module:FUNCTION",
)
"""The forms that a model's name may have."""
WEIGHTS = (".pth", ".pt", ".ckpt", ".bin", ".safetensors", ".tar", ".pkl")
"""Endings of files in which trained weights are kept."""


def build_model(name: str, *, classes: int | None, image_channels: int | None) -> nn.Module:
    """Builds an unpruned network by name, with new weights; nothing is downloaded.

    Args:
        name: One of `FORMS`. Only `FILE.py:FUNCTION` and `package.module:FUNCTION` run the user's code.
        classes: Outputs of the classifier; None: data of another kind, for which only the user knows the network.
        image_channels: Channels of the images; likewise.

    Raises:
        ModelError: The name is unknown, its library is missing, or the network cannot be built.
    """
    refuse_weights(name)
    if is_ultralytics(name):
        return _from_ultralytics(name, classes)
    if is_user_model(name):
        return _from_user(name, classes=classes, image_channels=image_channels)
    if is_hugging_face(name):
        return Origin(name).built(classes=classes, image_channels=image_channels)
    if classes is None or image_channels is None:
        raise ModelError(
            f"cannot build the model {name!r} for data of your own, whose classes are not known: expected a function "
            "that builds it, FILE.py:FUNCTION or package.module:FUNCTION"
        )
    library, separator, rest = name.partition(":")
    if library == "torchvision" and separator:
        return _from_torchvision(rest, classes, image_channels)
    if library == "timm" and separator:
        return _from_timm(rest, classes, image_channels)
    if name not in NAMES:
        raise ModelError(f"cannot build the model {name!r}: {_expected(name)}")
    halved_by: Halving = "stride" if name.endswith(STRIDED) else "pool"
    depth = name.removeprefix("resnet").removesuffix(STRIDED)
    return resnet(int(depth), classes=classes, image_channels=image_channels, halved_by=halved_by)


def is_user_model(name: str) -> bool:
    """Whether building the model runs the user's code."""
    return name.endswith(".py") or (":" in name and name.partition(":")[0] not in LIBRARIES)


def refuse_weights(name: str) -> None:
    """Checks that what is named as a network is no file of weights, maybe with a key of it behind a colon.

    Raises:
        ModelError: It is.
    """
    if is_ultralytics(name):
        return  # whose files say both
    if any(part.lower().endswith(WEIGHTS) for part in (name, name.rpartition(":")[0])):
        raise ModelError(
            f"cannot build the model {name!r}: that is a file of trained weights, which says nothing of the network; "
            f"name the network, and give the file beside it, such as net.py:build --weights {name}"
        )


def _expected(name: str) -> str:
    from torchvision import models

    if name in models.list_models(module=models):
        return f"it is not one of transprune's own; did you mean 'torchvision:{name}'?"
    return expected_one_of(name, FORMS)


def _from_torchvision(name: str, classes: int, image_channels: int) -> nn.Module:
    from torchvision import models

    known = models.list_models(module=models)
    if name in models.list_models(module=models.detection):
        return _detector(name, classes)
    if name not in known:
        raise ModelError(f"cannot build the model 'torchvision:{name}': {expected_one_of(name, known)}")
    if image_channels != 3:
        raise ModelError(
            f"cannot build the model 'torchvision:{name}' for images with {image_channels} channels: it reads 3; "
            f"bring the images to 3 (--image-size 3 ROWS COLUMNS), or use timm:NAME or FILE.py:FUNCTION"
        )
    model: nn.Module = models.get_model(name, weights=None, num_classes=classes)
    return model


def _detector(name: str, classes: int) -> nn.Module:
    """A detector of torchvision, of whose classes the first is the background."""
    from torchvision import models

    if name.startswith(("maskrcnn", "keypointrcnn")):
        raise ModelError(
            f"cannot build the model 'torchvision:{name}': it learns from more than boxes; expected a function that "
            "builds it (FILE.py:FUNCTION), with data of your own that hold masks or keypoints"
        )
    model: nn.Module = models.get_model(name, weights=None, weights_backbone=None, num_classes=classes)
    return model


def _from_timm(name: str, classes: int, image_channels: int) -> nn.Module:
    try:
        import timm
    except ModuleNotFoundError as error:
        raise ModelError(
            f"cannot build the model 'timm:{name}': timm is not installed; pip install 'transprune[timm]'"
        ) from error
    if not timm.is_model(name):
        raise ModelError(f"cannot build the model 'timm:{name}': {expected_one_of(name, timm.list_models())}")
    try:
        model: nn.Module = timm.create_model(name, pretrained=False, num_classes=classes, in_chans=image_channels)
    except Exception as error:  # a builder that does not accept one of these options may raise anything
        raise ModelError(
            f"cannot build the model 'timm:{name}' for {classes} classes and {image_channels} image channels: "
            f"{type(error).__name__}: {error}; build it by a function of your own (FILE.py:FUNCTION)"
        ) from error
    return model


ULTRALYTICS = "ultralytics:"


def is_ultralytics(name: str) -> bool:
    """Whether a network is named by the file of a YOLO."""
    return name.startswith(ULTRALYTICS)


def is_trained_yolo(name: str) -> bool:
    """Whether the file of a YOLO holds its trained weights, and not a description alone."""
    return is_ultralytics(name) and name.endswith(".pt")


def _from_ultralytics(name: str, classes: int | None) -> nn.Module:
    """A YOLO that detects. `classes` counts the background, which it has no output for.

    Its files are pickles, which ultralytics opens as far as they hold its own classes.
    """
    try:
        from ultralytics import YOLO
        from ultralytics.nn.tasks import DetectionModel
    except ModuleNotFoundError as error:
        raise ModelError(
            f"cannot build the model {name!r}: ultralytics is not installed; pip install 'transprune[ultralytics]' "
            "(its licence is AGPL-3.0)"
        ) from error
    file = name.removeprefix(ULTRALYTICS)
    try:
        model: Any = YOLO(file, task="detect").model
    except Exception as error:  # of the file, of the network where it is to be downloaded, and of ultralytics
        raise ModelError(
            f"cannot build the model {name!r}: {type(error).__name__}: {first_line(error)}; expected a .pt or .yaml of "
            "a YOLO that detects"
        ) from error
    if not isinstance(model, DetectionModel):
        raise ModelError(f"cannot build the model {name!r}: it is {outline(model)}; expected a YOLO that detects")
    wanted = None if classes is None else classes - 1
    if wanted is not None and wanted != model.model[-1].nc:
        if is_trained_yolo(name):
            raise ModelError(
                f"cannot build the model {name!r} for {wanted} classes: it was trained for {model.model[-1].nc}; "
                "expected data of the classes that it was trained for"
            )
        model = DetectionModel(model.yaml, nc=wanted, verbose=False)
    found: nn.Module = model.requires_grad_(True).float()
    return found


PRETRAINED = "pretrained"
"""In place of a file of weights: those that a library publishes for its network."""


def pretrained(name: str, *, image_channels: int) -> dict[str, Tensor]:
    """The trained weights that torchvision or timm publish for a network, downloaded where they are not kept yet.

    Args:
        name: `torchvision:NAME`, `timm:NAME`, `hf:FOLDER_OR_NAME`, `ultralytics:FILE.pt`, or one of ours that
            torchvision has too, such as resnet50-strided.
        image_channels: Channels of the images, to which timm adapts a first layer.

    Raises:
        ModelError: None are published for it, or they cannot be fetched.
    """
    if is_hugging_face(name):
        return Origin(name).tensors()
    if is_trained_yolo(name):
        return _from_ultralytics(name, None).state_dict()
    library, _, rest = name.rpartition(":")
    try:
        if library == "timm":
            import timm

            return dict(timm.create_model(rest, pretrained=True, in_chans=image_channels).state_dict())
        found = _published(name)
        if found is not None:
            return dict(found.get_state_dict(progress=False, check_hash=True))
    except Exception as error:  # of the network, the disk, and of timm where it has none
        raise ModelError(
            f"cannot get the trained weights of {name!r}: {type(error).__name__}: {error}; expected to read them from "
            "the Hub's cache or to download them; where this machine cannot, download them elsewhere and give the file "
            "(--weights FILE)"
        ) from error
    raise ModelError(
        f"cannot get trained weights of {name!r}: none are published for it; expected torchvision:NAME, timm:NAME or "
        f"{', '.join(f'resnet{depth}{STRIDED}' for depth in IMAGENET_BLOCKS)}, or a file of yours (--weights FILE)"
    )


def published_preprocessing(name: str) -> object:
    """What published weights expect of images, with `mean` and `std`; None where nothing says it.

    timm's networks say it themselves, as `pretrained_cfg`.
    """
    if is_hugging_face(name):
        return Origin(name).image_statistics()
    found = _published(name)
    return None if found is None else found.transforms()


def _published(name: str) -> Any:
    """The best weights that torchvision has of a network; None if it has none."""
    from torchvision import models

    library, _, rest = name.rpartition(":")
    plain = rest if library == "torchvision" else name.removesuffix(STRIDED) if name in NAMES else ""
    known = (*models.list_models(models), *models.list_models(models.detection))
    return getattr(models.get_model_weights(plain), "DEFAULT", None) if plain in known else None


def _from_user(name: str, *, classes: int | None, image_channels: int | None) -> nn.Module:
    """Builds a model with a function of the user."""
    wanted = UserFunction(name=name, purpose="build the model", error=ModelError, fits=_can_build, near=LIBRARIES)
    with wanted.imported() as builder, wanted.reported("calling it"):
        model = builder(**_arguments(builder, classes, image_channels))
    if not isinstance(model, nn.Module):
        raise wanted.failed(f"it returned {type(model).__name__}; expected a torch.nn.Module")
    types = {str(each.dtype) for each in model.parameters() if each.is_floating_point()} - {"torch.float32"}
    if types:
        raise wanted.failed(
            f"it returned weights of the type {' and '.join(sorted(types))}; expected torch.float32 (`model.float()`), "
            "in which a network learns (lower precision is an option, such as --search.precision bfloat16)"
        )
    return model


def _can_build(value: Any) -> bool:
    return callable(value) and not isinstance(value, nn.Module)


def _arguments(builder: Callable[..., Any], classes: int | None, image_channels: int | None) -> dict[str, int]:
    """The arguments that a function accepts, under its own names for them."""
    try:
        parameters = inspect.signature(builder).parameters
    except ValueError:  # some callables written in C have no signature
        return {}
    figures = {"classes": classes, "num_classes": classes, "image_channels": image_channels, "in_chans": image_channels}
    by_name = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return {
        key: value
        for key, value in figures.items()
        if value is not None and key in parameters and parameters[key].kind in by_name
    }
