"""Files that tell whether they are whole: each holds the SHA-256 of itself, taken with zeros in the digest's place."""

from __future__ import annotations

import hashlib
import re

KEY = "sha256"
BLANK = "0" * 64
"""What stands in the digest's place before it is known."""
_PLACE = re.compile(rb'"sha256": ?"(?=.{64}")', re.DOTALL)


def seal(content: bytes) -> bytes:
    """The content, JSON text or with JSON inside, with the digest under `KEY` in place of `BLANK`."""
    start = _place(content)
    assert start is not None, "a text under the key sha256"
    return content[:start] + _digest(content, start) + content[start + len(BLANK) :]


def is_whole(content: bytes) -> bool | None:
    """Whether the digest is that of the content; None if there is no digest."""
    start = _place(content)
    return None if start is None else content[start : start + len(BLANK)] == _digest(content, start)


def _place(content: bytes) -> int | None:
    """Where the first digest starts."""
    found = _PLACE.search(content)
    return found.end() if found else None


def _digest(content: bytes, start: int) -> bytes:
    view = memoryview(content)
    digest = hashlib.sha256(view[:start])
    digest.update(BLANK.encode())
    digest.update(view[start + len(BLANK) :])
    return digest.hexdigest().encode()
