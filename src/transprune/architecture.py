"""One choice of all sizes: the width of every group and the depth of every stage."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from transprune.errors import SpaceError


@dataclass(frozen=True)
class Architecture:
    """The sizes that make one network out of a search space.

    Groups and stages that it does not name keep their full size, so the empty architecture is the unpruned network.

    Example:
        >>> Architecture(widths={"stem.conv": 12}, depths={"stages.0": 2}).depths["stages.0"]
        2
    """

    widths: Mapping[str, int] = field(default_factory=dict)
    """Width (channels) by the name of the group."""
    depths: Mapping[str, int] = field(default_factory=dict)
    """Depth (blocks kept) by the name of the stage."""

    def __post_init__(self) -> None:
        for kind, sizes in (("width", self.widths), ("depth", self.depths)):
            for name, size in sizes.items():
                if isinstance(size, bool) or not isinstance(size, int) or size < 1:
                    raise SpaceError(
                        f"cannot make an architecture: the {kind} of {name!r} is {size!r}; "
                        f"expected a whole number of at least 1"
                    )
        object.__setattr__(self, "widths", dict(self.widths))
        object.__setattr__(self, "depths", dict(self.depths))

    def __hash__(self) -> int:
        return hash((frozenset(self.widths.items()), frozenset(self.depths.items())))

    def to_json(self) -> dict[str, Any]:
        """The architecture as plain values for `json.dumps`."""
        return {"widths": dict(self.widths), "depths": dict(self.depths)}

    @classmethod
    def from_json(cls, value: Any) -> Architecture:
        """Reads what `to_json` wrote; other keys are ignored.

        Args:
            value: The parsed object, or its text.

        Raises:
            SpaceError: The text is not JSON, or a part is missing or of another type.
        """
        if isinstance(value, str):
            value = parse_json(value, "an architecture")
        sizes = value if isinstance(value, dict) else {}
        for key in ("widths", "depths"):
            if not isinstance(sizes.get(key), dict):
                raise SpaceError(
                    f"cannot read an architecture: found {key} = {sizes.get(key)!r}; "
                    f"expected an object with the keys 'widths' and 'depths', each a map from a name to a size"
                )
        return cls(widths=sizes["widths"], depths=sizes["depths"])


def parse_json(text: str, what: str) -> Any:
    """Parses JSON text.

    Raises:
        SpaceError: The text is not JSON; the message names `what` and the place.
    """
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:  # ValueError: also a number of too many digits
        raise SpaceError(f"cannot read {what}: the text is not JSON ({error})") from error
