"""Reads the arguments into a command; its help shows the everyday options on one screen, and all on demand."""

from __future__ import annotations

import difflib
import io
import os
import re
import shutil
import sys
import textwrap
from collections.abc import Sequence
from contextlib import redirect_stdout, suppress
from dataclasses import MISSING, field, fields, is_dataclass, make_dataclass, replace
from itertools import pairwise
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, NoReturn, TextIO, Union, get_args, get_origin, get_type_hints

import docstring_parser
import tyro

from transprune.cli.commands import (
    CompareCommand,
    DistillCommand,
    EvaluateCommand,
    ExportCommand,
    InspectCommand,
    MeasureCommand,
    ReportCommand,
    WatchCommand,
)
from transprune.cli.completion import CompletionCommand, options_within
from transprune.cli.jobs import (
    CompressCommand,
    DeriveCommand,
    Job,
    ResumedCompress,
    ResumedRun,
    ResumedSearch,
    RunCommand,
    SearchCommand,
)
from transprune.errors import OptionError, expected_one_of
from transprune.options import DEFAULT_PRESET
from transprune.runs.run_options import preset_options, read_config

DESCRIPTION = """Makes trained PyTorch networks smaller: learns widths and depths in a budget.

transprune run resnet20 --budget latency=0.5 --out runs/first --preset quick

Each verb has help of its own: transprune run --help.
--plan says what a run would do, --version the version.

Exit codes: 0 done; 2 an error, which is printed; where the command goes on:
75 --max-minutes, 129 SIGHUP, 130 Ctrl-C, 143 SIGTERM."""

COMMANDS: dict[str, Any] = {
    "run": RunCommand,
    "compress": CompressCommand,
    "derive": DeriveCommand,
    "search": SearchCommand,
    "distill": DistillCommand,
    "evaluate": EvaluateCommand,
    "export": ExportCommand,
    "measure": MeasureCommand,
    "report": ReportCommand,
    "watch": WatchCommand,
    "compare": CompareCommand,
    "inspect": InspectCommand,
    "completion": CompletionCommand,
}


RESUMED: dict[str, Any] = {"run": ResumedRun, "compress": ResumedCompress, "search": ResumedSearch}
"""The commands of subcommands called as `--resume RUN`, without the arguments that start a run."""


def read_command(arguments: Sequence[str]) -> Any:
    """The command that the arguments name, with their values; exits if they ask for help or are invalid.

    Raises:
        OptionError: The verb is unknown, or the config file or preset cannot be used.
    """
    if not arguments or (arguments[0].startswith("-") and is_asked(arguments)):
        return _show_help(_all_verbs(), "transprune", description=DESCRIPTION)
    verb, *rest = arguments
    if verb not in COMMANDS:
        raise OptionError(f"cannot do {verb!r}: {expected_one_of(verb, COMMANDS)}")
    kind, default = _kind(verb, rest)
    if not is_asked(rest):
        _check_options(verb, kind, rest)
    if not is_asked(rest) and _lacks_budget(kind, default, rest):
        rest = [argument for argument in rest if argument != "--budget"]
        return _read(_page(kind, default, None, is_complete=False), f"transprune {verb}", rest)  # names what is missing
    if not is_asked(rest):
        return _read(kind, f"transprune {verb}", rest, default=default)
    page = page_of(kind, default, is_short=issubclass(kind, Job) and EVERYTHING not in rest)
    return _show_help(page, f"transprune {verb}", config=(tyro.conf.FlagCreatePairsOff,))


def _check_options(verb: str, kind: Any, arguments: Sequence[str]) -> None:
    """Checks the names of options, for which tyro would show each that has a part in common, in no useful order.

    Raises:
        OptionError: One is not known.
    """
    known = {_positive(option): option for option, _ in options_within(kind)}
    for argument in arguments:
        name = argument.partition("=")[0].replace("_", "-")
        if len(name) > 2 and name.startswith("--") and _positive(name) not in known:
            near = difflib.get_close_matches(name, [*known.values()], n=3)
            meant = f"did you mean {' or '.join(near)}? " if near else ""
            raise OptionError(
                f"cannot use {name}: {meant}`transprune {verb} {EVERYTHING}` lists all options that it has"
            )


def _positive(option: str) -> str:
    """The name of an option without the `no-` that switches it off."""
    return re.sub(r"(--|\.)no-", r"\1", option)


class _Kept(io.StringIO):
    """Text that is kept; drawn and coloured as for another stream."""

    def __init__(self, stream: TextIO) -> None:
        super().__init__()
        self._stream = stream

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return self._stream.encoding

    def isatty(self) -> bool:
        return self._stream.isatty()


def _show_help(kind: Any, program: str, **more: Any) -> NoReturn:
    """Prints help and exits; tyro breaks all lines but the first, which lists arguments or verbs."""
    with redirect_stdout(_Kept(sys.stdout)) as shown, suppress(SystemExit):
        _read(kind, program, ["--help"], **more)
    usage, _, rest = shown.getvalue().partition("\n")
    usage = re.sub(r"\{.*\}", "VERB ...", usage)  # whose names stand below
    columns = shutil.get_terminal_size().columns
    indented = " " * len("usage: ")
    lines = textwrap.wrap(usage, columns, subsequent_indent=indented, break_long_words=False, break_on_hyphens=False)
    print("\n".join([*lines, rest]), end="")
    sys.exit(0)


def _read(kind: Any, program: str, arguments: Sequence[str], **more: Any) -> Any:
    if shutil.get_terminal_size().columns < _NARROW:
        os.environ["COLUMNS"] = str(_NARROW)
    with _PLAIN:
        return tyro.cli(kind, prog=program, args=list(arguments), **more)


_NARROW = 40
"""Columns that a narrower terminal is taken to have: in very few, tyro breaks lines for ever."""
_PLAIN = tyro.constructors.ConstructorRegistry()
"""Reads values as tyro does, and says in plain words what was expected, where tyro would list all that it tried."""


@_PLAIN.primitive_rule
def _plainly(about: tyro.constructors.PrimitiveTypeInfo) -> tyro.constructors.PrimitiveConstructorSpec[Any] | None:
    hints = get_args(about.type) if get_origin(about.type) in (Union, UnionType) else (about.type,)
    if _reading or (len(hints) == 1 and hints[0] not in _SAID and get_origin(hints[0]) is not tuple):
        return None
    _reading.append(about)
    spec = tyro.constructors.ConstructorRegistry.get_primitive_spec(about)
    _reading.clear()
    if not isinstance(spec, tyro.constructors.PrimitiveConstructorSpec):
        return None

    def read(words: list[str]) -> Any:
        try:
            return spec.instance_from_str(words)
        except ValueError:
            wanted = " or ".join(map(_said, (hint for hint in hints if hint is not NoneType)))
            raise ValueError(f"expected {wanted}, found {' '.join(words)!r}") from None

    return replace(spec, instance_from_str=read)


_reading: list[Any] = []
"""What `_plainly` is asking the other rules about, itself left out."""
_SAID = {int: "a whole number", float: "a number", str: "a text"}


def _said(hint: Any) -> str:
    """What messages call a kind of value."""
    if get_origin(hint) is Literal:
        return f"one of {', '.join(get_args(hint))}"
    if get_origin(hint) is tuple:
        kind, *others = get_args(hint)
        return f"{'' if Ellipsis in others else f'{len(others) + 1} '}{_SAID[kind].partition(' ')[2]}s"
    return _SAID[hint]


def _kind(verb: str, arguments: Sequence[str]) -> tuple[Any, Any]:
    """The dataclass of a command, and its defaults if it starts a run."""
    command = COMMANDS[verb]
    if not issubclass(command, Job):
        return command, tyro.MISSING_NONPROP
    if _is_resumed(arguments):
        return RESUMED[verb], tyro.MISSING_NONPROP
    return command, command(**_defaults(arguments))


def _lacks_budget(kind: Any, default: Any, arguments: Sequence[str]) -> bool:
    """Whether a command wants a budget and is given none, which tyro does not notice of an option to be repeated."""
    is_wanted = any(item.name == "budget" for item in fields(kind)) and _value(arguments, "--budget") is None
    return is_wanted and getattr(default, "budget", tyro.MISSING) is tyro.MISSING


def _all_verbs() -> Any:
    """The verbs with their purposes, without their options."""
    verbs = []
    for verb, kind in COMMANDS.items():
        purpose = kind.__doc__.strip().partition("\n")[0]
        verbs.append(Annotated[make_dataclass(verb, ()), tyro.conf.subcommand(verb, description=purpose)])
    listed: Any = Annotated[Union[tuple(verbs)], tyro.conf.arg(name="", help="What to do.")]  # noqa: UP007 (built here)
    return make_dataclass("Verbs", [("verb", listed)])  # otherwise tyro reads its own source for a docstring


def _defaults(arguments: Sequence[str]) -> dict[str, Any]:
    """Defaults of a command that starts a run: values in the file of --config, then those of the preset.

    The arguments --config and --preset are read before all others, because they decide these defaults.
    """
    path = _value(arguments, "--config")
    config = read_config(path) if path is not None else {}
    preset = _value(arguments, "--preset") or config.get("preset", DEFAULT_PRESET)
    is_named = isinstance(preset, str)  # otherwise the file is rejected with a reason
    options = preset_options(preset if is_named else DEFAULT_PRESET, config, path=path or "")
    given = {item.name: getattr(options, item.name) for item in fields(options) if item.name != "compress"}
    given["data"] = config.get("data", "")  # which data there are otherwise, depends on the network
    missing = [name for name in ("model", "budget") if name not in config]
    if _value(arguments, "--budget") is not None:
        missing.append("budget")  # otherwise tyro would append those of the arguments to those of the file
    return {**given, **dict.fromkeys([*missing, "out"], tyro.MISSING)}


def _value(arguments: Sequence[str], option: str) -> str | None:
    """The value of an option in the arguments; the last one if it is repeated, None if another option follows."""
    found = None
    for argument, following in pairwise([*arguments, None]):
        if argument == option:
            found = None if following is None or following.startswith("--") else following
        elif argument is not None and argument.startswith(f"{option}="):
            found = argument.removeprefix(f"{option}=")
    return found


def _is_resumed(arguments: Sequence[str]) -> bool:
    """Whether the arguments are of the form `--resume RUN`, which takes all options from the run."""
    return "--resume" in arguments and not any(argument.partition("=")[0] == "--out" for argument in arguments)


EVERYTHING = "--help-all"
EVERYDAY = (
    *("model", "data", "task", "budget", "out", "preset", "config", "plan", "as_json", "weights", "download", "device"),
    *("image_size", "mean", "std", "seed", "keep", "divisor", "overwrite", "resume", "samples", "repair"),
)
"""Options in the short help of commands that start a run; `--help-all` shows the others too."""
MORE = f"The everyday options; all of them, in whole sentences: {EVERYTHING}"
NONE = tyro.MISSING_NONPROP
"""In place of defaults: the dataclass has its own."""
_OBVIOUS = (None, False, ())
"""Defaults that help need not mention; nor True, whose option begins with `--no-`."""


def is_asked(arguments: Sequence[str]) -> bool:
    """Whether the arguments ask for help."""
    return any(argument in ("-h", "--help", EVERYTHING) for argument in arguments)


def page_of(kind: Any, default: Any, *, is_short: bool) -> Any:
    """A dataclass from which tyro makes the help of a command.

    Args:
        kind: The dataclass of the command.
        default: An instance with the defaults; `NONE`: those of the dataclass.
        is_short: Show only the everyday options.
    """
    page = _page(kind, default, EVERYDAY if is_short else None)
    if is_short:
        page.__doc__ = f"{kind.__doc__.rstrip()}\n\n    {MORE}\n    "
    return page


def _page(kind: Any, default: Any, shown: Sequence[str] | None, *, is_complete: bool = True) -> Any:
    """A dataclass with the shown fields, their docstrings joined to one line: tyro would keep some line breaks.

    Args:
        kind: As for `page_of`.
        default: Likewise.
        shown: The fields to show, each with its first sentence; None: all, with all that is said of them.
        is_complete: Whether options that may be repeated may also be missing.
    """
    bare: dict[str, Any] = get_type_hints(kind)
    hints, said = get_type_hints(kind, include_extras=True), _docstrings(kind)
    made = []
    for item in fields(kind):
        if shown is not None and item.name not in shown:
            continue
        inner, marks = bare[item.name], getattr(hints[item.name], "__metadata__", ())
        value = item.default if default is NONE else getattr(default, item.name)
        is_repeated = tyro.conf.UseAppendAction in marks
        if is_repeated and not is_complete:
            marks = tuple(mark for mark in marks if mark is not tyro.conf.UseAppendAction)
        own: Any = field(default=value)
        if is_dataclass(inner):
            inner = _page(inner, NONE if value is MISSING else value, None)
            own = field(default_factory=inner)
        elif item.name in said:
            is_list = value is MISSING and get_origin(inner) is tuple  # of which tyro says that the default is nothing
            is_obvious = is_list or item.default is True or item.default in (*_OBVIOUS, "")
            hint = "(required; repeatable)" if is_repeated else "" if is_obvious else None
            first, dot, _ = said[item.name].partition(". ")
            text = said[item.name] if shown is None else f"{first}{dot.strip()}"
            marks += (tyro.conf.arg(help=text, help_behavior_hint=hint),)
        made.append((item.name, Annotated[(inner, *marks)] if marks else inner, own))
    return make_dataclass(kind.__name__, made, namespace={"__doc__": kind.__doc__}, frozen=True, kw_only=True)


def _docstrings(kind: Any) -> dict[str, str]:
    """The docstring of each field."""
    return {
        part.arg_name: " ".join(part.description.split())
        for base in reversed(kind.__mro__)
        if is_dataclass(base)
        for part in docstring_parser.parse_from_object(base).params
        if part.description
    }
