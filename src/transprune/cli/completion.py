"""What the shell completes: verbs, options and their choices, and files everywhere else.

tyro writes such scripts too, but a verb's RUN would lose the completion of files in bash: they give it one empty word.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

import tyro

from transprune.data.sources import SPECIFICATIONS
from transprune.models.by_name import NAMES
from transprune.runs.presets import PRESETS

Shell = Literal["bash", "zsh", "fish"]
CHOICES = {
    "--preset": tuple(PRESETS),
    "--data": tuple(specification.removesuffix("DIR") for specification in SPECIFICATIONS),
    "--device": ("auto", "cpu", "cuda"),
}
"""Words for options whose type does not name them."""
FIRST = {"run": NAMES, "search": NAMES, "inspect": NAMES, "completion": get_args(Shell)}
"""Words that may stand right behind a verb."""
Options = Mapping[str, tuple[str, ...]]
"""The options of a verb, each with the words that it may be given."""


@dataclass(frozen=True, kw_only=True)
class CompletionCommand:
    """Print a script by which the shell completes verbs, options and their values.

    transprune completion bash > ~/.local/share/bash-completion/completions/transprune
    """

    shell: Annotated[tyro.conf.Positional[Shell], tyro.conf.arg(metavar="SHELL")]
    """bash, zsh or fish."""

    def __call__(self) -> None:
        """Prints the script."""
        from transprune.cli.arguments import COMMANDS

        verbs = {verb: options_of(kind) for verb, kind in COMMANDS.items()}
        print({"bash": bash_script, "zsh": zsh_script, "fish": fish_script}[self.shell](verbs), end="")


def options_of(kind: Any) -> dict[str, tuple[str, ...]]:
    """The options of a command."""
    return {"--help": (), **dict(_options(kind, ""))}


def _options(kind: Any, prefix: str) -> Iterator[tuple[str, tuple[str, ...]]]:
    bare, hints = get_type_hints(kind), get_type_hints(kind, include_extras=True)
    for item in fields(kind):
        hint: Any = bare[item.name]
        marks = getattr(hints[item.name], "__metadata__", ())
        renamed = [mark.name for mark in marks if getattr(mark, "name", None) is not None]
        name = (renamed or [item.name.replace("_", "-")])[0]
        if is_dataclass(hint):
            yield from _options(hint, f"{prefix}{name}." if name else prefix)
        elif tyro.conf.Positional not in marks:
            option = f"--{prefix}{name}"
            words = tuple(map(str, get_args(hint))) if get_origin(hint) is Literal else ()
            yield option, words or CHOICES.get(option, ())


def bash_script(verbs: Mapping[str, Options]) -> str:
    """The script for bash; where it has no word, bash completes files."""
    choices = [
        f'        "{verb} {option}") words="{" ".join(words)}" ;;'
        for verb, options in verbs.items()
        for option, words in options.items()
        if words
    ]
    firsts = [f'        "{verb} {verb}") words="{" ".join(words)}" ;;' for verb, words in FIRST.items()]
    lists = [f'        {verb}) words="{" ".join(options)}" ;;' for verb, options in verbs.items()]
    return "\n".join(
        [
            "_transprune() {",
            '    local words="" verb=${COMP_WORDS[1]} current=${COMP_WORDS[COMP_CWORD]}',
            "    local before=${COMP_WORDS[COMP_CWORD-1]}",
            '    if [ "$COMP_CWORD" = 1 ]; then',
            f'        words="{" ".join(verbs)}"',
            '    elif [ "${current#-}" != "$current" ]; then',
            '        case "$verb" in',
            *lists,
            "        esac",
            "    else",
            '        case "$verb $before" in',
            *choices,
            *firsts,
            "        esac",
            "    fi",
            '    COMPREPLY=($(compgen -W "$words" -- "$current"))',
            "}",
            "complete -o default -F _transprune transprune",
            "",
        ]
    )


def zsh_script(verbs: Mapping[str, Options]) -> str:
    """The same script for zsh, which knows how to read it."""
    begin = "(( $+functions[compdef] )) || { autoload -U +X compinit; compinit; }"
    return f"{begin}\nautoload -U +X bashcompinit\nbashcompinit\n{bash_script(verbs)}"


def fish_script(verbs: Mapping[str, Options]) -> str:
    """The script for fish."""
    lines = [f'complete -c transprune -n __fish_use_subcommand -f -a "{" ".join(verbs)}"']
    for verb, words in FIRST.items():
        lines.append(f"complete -c transprune -n '__fish_seen_subcommand_from {verb}' -a \"{' '.join(words)}\"")
    for verb, options in verbs.items():
        for option, words in options.items():
            values = f' -x -a "{" ".join(words)}"' if words else ""
            lines.append(
                f"complete -c transprune -n '__fish_seen_subcommand_from {verb}' -l {option.removeprefix('--')}{values}"
            )
    return "\n".join([*lines, ""])
