"""Scripts with which a shell completes verbs, options and their values, and file names everywhere else.

tyro can write such scripts too; decision 16 says why they do not serve.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

import tyro

Shell = Literal["bash", "zsh", "fish"]
Words = Mapping[str, tuple[str, ...]]
"""The values that may follow each option or verb; empty: anything, such as a file."""

_BASH = """\
_transprune() {
    local words="" verb=${COMP_WORDS[1]} current=${COMP_WORDS[COMP_CWORD]}
    case "$COMP_CWORD $current" in
        "1 "*) words="%s" ;;
        *" -"*) case "$verb" in
%s
        esac ;;
        *) case "$verb ${COMP_WORDS[COMP_CWORD-1]}" in
%s
        esac ;;
    esac
    COMPREPLY=($(compgen -W "$words" -- "$current"))
}
complete -o default -F _transprune transprune
"""
_ZSH = """\
(( $+functions[compdef] )) || { autoload -U +X compinit; compinit; }
autoload -U +X bashcompinit
bashcompinit
"""
"""The beginning of the script for zsh, which continues with that for bash."""


@dataclass(frozen=True, kw_only=True)
class CompletionCommand:
    """Print a script by which the shell completes verbs, options and their values.

    transprune completion bash > ~/.transprune.bash
    """

    shell: Annotated[tyro.conf.Positional[Shell], tyro.conf.arg(metavar="SHELL")]
    """bash, zsh or fish."""

    def __call__(self) -> None:
        from transprune.cli.arguments import COMMANDS
        from transprune.models.by_name import NAMES

        behind = {"run": NAMES, "compress": NAMES, "search": NAMES, "inspect": NAMES, "completion": get_args(Shell)}
        verbs = {verb: {verb: behind.get(verb, ()), **options_of(kind)} for verb, kind in COMMANDS.items()}
        print(_fish(verbs) if self.shell == "fish" else (_ZSH if self.shell == "zsh" else "") + _bash(verbs), end="")


def options_of(kind: Any) -> Words:
    """The options of a command, with the values that each may take."""
    from transprune.data.sources import SPECIFICATIONS
    from transprune.data.texts import HF_DATASET, TEXT
    from transprune.options import PRESETS

    untyped = {
        "--preset": tuple(PRESETS),
        "--data": (*(specification.removesuffix("DIR") for specification in SPECIFICATIONS), TEXT, HF_DATASET),
        "--device": ("auto", "cpu", "cuda"),
    }
    return {"--help": (), **{option: words or untyped.get(option, ()) for option, words in options_within(kind)}}


def options_within(kind: Any, prefix: str = "--") -> Iterator[tuple[str, tuple[str, ...]]]:
    """The options of a command but for --help, each with the values that its type names."""
    bare, hints = get_type_hints(kind), get_type_hints(kind, include_extras=True)
    for item in fields(kind):
        hint: Any = bare[item.name]
        marks = getattr(hints[item.name], "__metadata__", ())
        name = next((mark.name for mark in marks if getattr(mark, "name", None) is not None), item.name)
        option = prefix + ("no-" if item.default is True else "") + name.replace("_", "-")
        if tyro.conf.Suppress in marks:
            continue
        if is_dataclass(hint):
            yield from options_within(hint, f"{option}." if name else prefix)
        elif tyro.conf.Positional not in marks:
            yield option, tuple(map(str, get_args(hint))) if get_origin(hint) is Literal else ()


def _bash(verbs: Mapping[str, Words]) -> str:
    options = [_case(verb, [word for word in known if word != verb]) for verb, known in verbs.items()]
    words = [_case(f'"{verb} {before}"', after) for verb, known in verbs.items() for before, after in known.items()]
    return _BASH % (" ".join(verbs), "\n".join(options), "\n".join(filter(None, words)))


def _case(pattern: str, words: Collection[str]) -> str:
    return f'            {pattern}) words="{" ".join(words)}" ;;' if words else ""


def _fish(verbs: Mapping[str, Words]) -> str:
    lines = [f'complete -c transprune -n __fish_use_subcommand -f -a "{" ".join(verbs)}"']
    for verb, known in verbs.items():
        for before, words in known.items():
            option = "" if before == verb else f" -l {before.removeprefix('--')}{' -x' if words else ''}"
            values = f' -a "{" ".join(words)}"' if words else ""
            if option or values:
                lines.append(f"complete -c transprune -n '__fish_seen_subcommand_from {verb}'{option}{values}")
    return "\n".join([*lines, ""])
