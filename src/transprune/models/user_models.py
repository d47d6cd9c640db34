"""Networks that a function of the user's builds."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from torch import nn

from transprune.errors import ModelError
from transprune.runtime import UserFunction


def build_user_model(name: str, *, classes: int, image_channels: int) -> nn.Module:
    """Imports a file or a module and calls a function of it, which builds the network.

    The folder of the file, or for a module the current directory, can be imported from meanwhile.

    Args:
        name: `FILE.py:FUNCTION` or `package.module:FUNCTION`; the function may be a class.
        classes: Passed as `classes` or `num_classes`, if the function has a parameter of that name.
        image_channels: Passed as `image_channels` or `in_chans`, if the function has a parameter of that name.

    Raises:
        ModelError: The file, module or function is missing; its code fails; or what it returns is no module.
    """
    wanted = UserFunction(
        name=name, purpose="build the model", error=ModelError, fits=_can_build, near=("torchvision", "timm")
    )
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


def _arguments(builder: Callable[..., Any], classes: int, image_channels: int) -> dict[str, int]:
    """Those of our figures that the function has a parameter for."""
    try:
        parameters = inspect.signature(builder).parameters
    except ValueError:  # some callables that are written in C have no signature
        return {}
    figures = {"classes": classes, "num_classes": classes, "image_channels": image_channels, "in_chans": image_channels}
    by_name = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return {key: value for key, value in figures.items() if key in parameters and parameters[key].kind in by_name}
