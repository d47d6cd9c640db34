"""The folder that holds everything a run reads and writes."""

from __future__ import annotations

import json
import shlex
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from transprune.errors import RunFolderError, newer_format
from transprune.records import FORMAT, HEADER, differences, read_toml, to_toml
from transprune.runtime.checkpoint import CHECKPOINT_FILES
from transprune.runtime.files import BLANK, KEY, StrPath, disk_errors, is_whole, leftovers, seal, write_atomically
from transprune.runtime.journal import read_journal
from transprune.runtime.structures import to_plain
from transprune.runtime.tensors import decode_tensors, encode_tensors

CONFIG_FILE = "config.toml"
RUN_FILES = (
    CONFIG_FILE,
    "environment.json",
    "data.json",
    "journal.jsonl",
    "run.log",
    *CHECKPOINT_FILES,
    "teacher.safetensors",
    "shared.safetensors",
    "supernet.safetensors",
    "repaired.safetensors",
    "space.json",
    "latency.json",
    "file_size.json",
    "lose.json",
    "samples.safetensors",
    "scores.json",
    "architecture.json",
    "compressed.safetensors",
    "student.safetensors",
    "student.onnx",
    "student.pt2",
    "student.xml",
    "student.bin",
    "student.tflite",
    "student.pte",
    "student.int8.onnx",
    "int8.json",
    "result.json",
    "examples.json",
    "measurements.json",
    "report.html",
    "frontier.json",
    "frontier.html",
)
"""Every file that transprune writes into a run folder, in the order of their making."""


class RunFolder:
    """One run on disk: its configuration and the files that its steps hand to each other.

    Every file is written whole or not at all, so what is there can be trusted after an interruption.

    Example:
        >>> folder = RunFolder.create("runs/digits", {"model": "resnet20", "seed": 0})  # doctest: +SKIP
        >>> folder.write_json("result.json", {"top1": 99.2})  # doctest: +SKIP
    """

    def __init__(self, path: StrPath) -> None:
        self.path = Path(path)

    @classmethod
    def create(cls, path: StrPath, config: Mapping[str, Any], *, overwrite: bool = False) -> RunFolder:
        """Starts a run, or takes up the one with the same configuration that the folder holds already.

        Args:
            path: The folder; made if missing, with its parents.
            config: The resolved configuration, nested tables allowed. None means the same as a missing key.
            overwrite: Start anew where the folder holds a run: its files (`RUN_FILES`) are removed, others stay.

        Raises:
            RunFolderError: The folder holds a run with another configuration, or files but no run; it is not
                a folder; or it cannot be written.
            OptionError: A value of `config` is of a kind that TOML cannot hold.
        """
        folder = cls(path)
        text = to_toml({"format": FORMAT, **config})
        with disk_errors("make the run folder", folder.path):
            folder.path.mkdir(parents=True, exist_ok=True)
        folder.check(config, overwrite=overwrite)
        if folder.has(CONFIG_FILE) and not overwrite:
            return folder
        if folder.has(CONFIG_FILE):
            folder._remove_run()
        folder.write_text(CONFIG_FILE, text)
        return folder

    def check(self, config: Mapping[str, Any], *, overwrite: bool = False) -> None:
        """Checks that `create` would start or take up a run here, and changes nothing.

        Raises:
            RunFolderError: The folder holds a run with another configuration, or files but no run.
        """
        if self.has(CONFIG_FILE):
            if overwrite:
                self._check_ours()
            else:
                self._check_same_run(config)
        elif self.path.exists():
            self._check_empty()

    @classmethod
    def open(cls, path: StrPath) -> RunFolder:
        """Opens a folder that holds a run.

        Raises:
            RunFolderError: The folder is missing or holds no run.
        """
        folder = cls(path)
        if not folder.has(CONFIG_FILE):
            found = "it is a file" if folder.path.is_file() else "there is no such folder"
            if folder.path.is_dir():
                found = "it has no config.toml"
            raise RunFolderError(
                f"cannot open the run folder '{path}': {found}; "
                "name the folder that `transprune run` or `transprune search` wrote with --out"
            )
        return folder

    @property
    def config(self) -> dict[str, Any]:
        """The configuration as it stands in config.toml; a value that was None is missing.

        Raises:
            RunFolderError: The file is missing or malformed, or of a newer format.
        """
        try:
            config = read_toml(self._read(CONFIG_FILE))
        except (ValueError, RecursionError) as error:
            raise self._malformed(CONFIG_FILE, "TOML", error) from error
        found = config.pop("format", FORMAT)
        if found != FORMAT:
            raise RunFolderError(f"cannot use the run folder '{self.path}': {newer_format(found, FORMAT)}")
        return config

    def tidy(self) -> None:
        """Removes what killed processes left half written; only for who holds the folder's lock.

        Raises:
            RunFolderError: The folder cannot be written.
        """
        for path in leftovers(self.path):
            with disk_errors("remove", path):
                path.unlink(missing_ok=True)

    def file(self, name: str) -> Path:
        """The path of a file of this run, whether it is there or not."""
        return self.path / name

    @property
    def in_shell(self) -> str:
        """The path as it is written in a command."""
        return shlex.quote(str(self.path))

    def has(self, name: str) -> bool:
        """Whether a file is there."""
        with disk_errors("read", self.file(name)):
            return self.file(name).is_file()

    def require(self, name: str, *, made_by: str) -> Path:
        """The path of a file that an earlier step has left.

        Args:
            name: The file.
            made_by: The step that writes it, as on the command line, such as "search".

        Raises:
            RunFolderError: The file is missing; the message names the step.
        """
        if not self.has(name):
            if not self.path.is_dir():
                self.open(self.path)  # which says so
            raise RunFolderError(
                f"cannot go on with the run folder '{self.path}': it has no {name}, which the step '{made_by}' "
                f"writes; run `transprune {made_by}` for this folder first, or `transprune run --resume "
                f"{self.in_shell}`, which does all that is left"
            )
        return self.file(name)

    def read_json(self, name: str) -> dict[str, Any]:
        """Reads a JSON file of one object, without its checksum.

        Raises:
            RunFolderError: The file is missing, malformed, or not as it was written.
        """
        content = self._read(name)
        try:
            value = json.loads(content)
        except (ValueError, RecursionError) as error:
            raise self._malformed(name, "JSON", error) from error
        if not isinstance(value, dict):
            raise self._malformed(name, "JSON object", f"it is a {type(value).__name__}")
        if value.pop(KEY, None) is not None and not is_whole(content):
            raise RunFolderError(
                f"cannot read '{self.file(name)}': it was changed since it was written (its checksum does not fit); "
                f'restore it, remove its line "{KEY}" if the change is yours, or repeat the run with --overwrite'
            )
        return value

    def read_journal(self) -> list[dict[str, Any]]:
        """The records of the journal; none where there is none yet."""
        return read_journal(self.file("journal.jsonl")) if self.has("journal.jsonl") else []

    def read_tensors(self, name: str) -> dict[str, Tensor]:
        """Reads a safetensors file onto the CPU.

        Raises:
            RunFolderError: The file is missing or damaged.
        """
        try:
            return decode_tensors(self._read(name))
        except ValueError as error:
            raise self._malformed(name, "safetensors", error) from error

    def write_json(self, name: str, value: Any) -> Path:
        """Writes a value as indented JSON; tensors become lists, numbers that are not finite become text.

        An object gets the checksum of the file as its first entry, `sha256`.

        Raises:
            RunFolderError: The file cannot be written.
        """
        plain = to_plain(value)
        is_object = isinstance(plain, dict)
        value = {KEY: BLANK, **plain} if is_object else plain
        text = json.dumps(value, indent=2, ensure_ascii=False) + "\n"
        if not text.isascii() and any("\ud800" <= sign <= "\udfff" for sign in text):  # of a path that is no UTF-8
            text = json.dumps(value, indent=2) + "\n"
        return self.write_bytes(name, seal(text.encode()) if is_object else text.encode())

    def write_tensors(
        self, name: str, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None
    ) -> Path:
        """Writes named tensors, such as a state dict, as safetensors; equal tensors give equal files.

        Raises:
            RunFolderError: The file cannot be written.
        """
        return self.write_bytes(name, encode_tensors(tensors, metadata))

    def write_text(self, name: str, text: str) -> Path:
        """Writes a text file in UTF-8; bytes of paths that are none become question marks.

        Raises:
            RunFolderError: The file cannot be written.
        """
        return self.write_bytes(name, text.encode(errors="replace"))

    def write_bytes(self, name: str, content: bytes) -> Path:
        """Writes a file.

        Raises:
            RunFolderError: The file cannot be written.
        """
        write_atomically(self.file(name), content)
        return self.file(name)

    def __repr__(self) -> str:
        return f"RunFolder({str(self.path)!r})"

    def _read(self, name: str) -> bytes:
        with disk_errors("read", self.file(name)):
            return self.file(name).read_bytes()

    def _malformed(self, name: str, kind: str, error: Exception | str) -> RunFolderError:
        return RunFolderError(
            f"cannot read '{self.file(name)}': it is no valid {kind} ({error}); "
            "repair it, or repeat the run with --overwrite"
        )

    def _check_same_run(self, wanted: Mapping[str, Any]) -> None:
        lines = differences(self.config, read_toml(to_toml(wanted).encode()))
        if lines:
            raise RunFolderError(
                f"cannot use the run folder '{self.path}': it holds a run with another configuration\n  "
                + "\n  ".join(lines)
                + "\nchoose another folder with --out, or start anew in this one with --overwrite"
            )

    def _check_empty(self) -> None:
        """Allows only what a start that was killed may have left: a config.toml half written."""
        with disk_errors("read the run folder", self.path):
            others = sorted(set(self.path.iterdir()) - set(leftovers(self.path, CONFIG_FILE)))
        if others:
            raise RunFolderError(
                f"cannot start a run in '{self.path}': the folder holds no run (no config.toml) but other files, "
                f"such as {others[0].name}, and these are never removed; choose another folder with --out"
            )

    def _check_ours(self) -> None:
        """Allows only a configuration that transprune wrote."""
        if not self._read(CONFIG_FILE).startswith(HEADER.encode()):
            raise RunFolderError(
                f"cannot overwrite '{self.path}': its config.toml was not written by transprune (it does not "
                f"begin with {HEADER.strip()!r}); choose another folder with --out"
            )

    def _remove_run(self) -> None:
        """Removes all files of a run but config.toml, last made first: what is left is always a run."""
        shutil.rmtree(self.file("tensorboard"), ignore_errors=True)
        for name in reversed(RUN_FILES):
            for path in (self.file(name), *leftovers(self.path, name)):
                if path.name != CONFIG_FILE:
                    with disk_errors("remove", path):
                        path.unlink(missing_ok=True)
