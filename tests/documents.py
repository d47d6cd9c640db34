"""The blocks of the pages: what a reader would run, and how the tests run it.

A fenced block runs as it stands, in the order of its page: `python` in one namespace (a block that begins with
`# NAME.py` is that file, as a `toml` one with `# NAME.toml` is), `bash` command by command in one folder. Before a
fenced block, on a line of its own, may stand

    <!-- not run: REASON -->
    <!-- shortened in tests: OPTIONS -->

The options are appended to every `transprune run` and `search` of the block. An indented block only shows. Whether it
runs or not, each line that calls transprune must be one that the command line takes.
"""

import contextlib
import io
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

from transprune import cli

ROOT = Path(__file__).parent.parent
FENCED = re.compile(
    r"(?:^<!-- (?P<mark>not run|shortened in tests): (?P<said>.+?) -->\n)?^```(?P<language>\w+)\n(?P<text>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)
FILE = re.compile(r"# (\S+\.(?:py|toml))\n")
SHORTENED = ("transprune run ", "transprune search ")


@dataclass(frozen=True)
class Block:
    """A fenced block and what the page says about it."""

    language: str
    text: str
    not_run: str | None = None
    shortened: str = ""

    @property
    def commands(self) -> list[str]:
        """The commands of a `bash` block, one a line, without comments."""
        return command_lines(self.text)


@dataclass
class Outcome:
    """What is left of a page that was run."""

    names: dict = field(default_factory=dict)
    printed: dict = field(default_factory=dict)
    """By the text of the block."""


def pages() -> list[Path]:
    """Every page for readers."""
    return [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]


def blocks(page: Path) -> list[Block]:
    """The fenced blocks of a page."""
    return [
        Block(
            language=found["language"],
            text=found["text"],
            not_run=found["said"] if found["mark"] == "not run" else None,
            shortened=found["said"] if found["mark"] == "shortened in tests" else "",
        )
        for found in FENCED.finditer(page.read_text())
    ]


def shown_commands(page: Path) -> list[str]:
    """The commands of the indented blocks of a page."""
    unfenced = FENCED.sub("", page.read_text())
    lines = [line for line in unfenced.splitlines() if line.startswith("    ")]
    return [
        command for command in command_lines("\n".join(lines)) if re.match(r"(transprune|make|python|pip) ", command)
    ]


def command_lines(text: str) -> list[str]:
    """Commands as they are typed: continued lines joined, comments gone, `a; b` as two."""
    joined = text.replace("\\\n", " ")
    lines = [re.sub(r"(^|\s)#.*", "", line) for line in joined.splitlines()]
    return [part.strip() for line in lines for part in line.split(";") if part.strip()]


def run_page(page: Path, folder: Path) -> Outcome:
    """Does what a reader does with a page, in a folder."""
    outcome = Outcome()
    known = set(sys.modules)
    sys.path.insert(0, str(folder))
    try:
        with contextlib.chdir(folder):
            for block in blocks(page):
                if block.not_run is None:
                    outcome.printed[block.text] = _run(block, page, outcome.names)
    finally:
        sys.path.remove(str(folder))
        for name in set(sys.modules) - known:  # another page may have another file of that name
            if str(folder) in str(getattr(sys.modules[name], "__file__", None)):
                del sys.modules[name]
    return outcome


def _run(block: Block, page: Path, names: dict) -> str:
    file = FILE.match(block.text)
    if block.language in ("python", "toml") and file:
        Path(file[1]).write_text(block.text)
        return ""
    if block.language == "bash":
        return "".join(run_command(command, block.shortened) for command in block.commands)
    assert block.language == "python", f"{page.name}: nothing is known about {block.language} blocks"
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        exec(compile(block.text, page.name, "exec"), names)
    return printed.getvalue()


def run_command(command: str, shortened: str = "") -> str:
    """What a command prints: transprune's in this process, which has imported torch already, others in a shell."""
    if not command.startswith("transprune "):
        bin_folder = Path(sys.executable).parent
        done = subprocess.run(
            ["bash", "-euc", f'export PATH="{bin_folder}:$PATH" OMP_NUM_THREADS=1; {command}'],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
        return done.stdout
    command, _, target = command.partition(" > ")
    if command.startswith(SHORTENED):
        command = f"{command} {shortened}"
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        try:
            cli.main(shlex.split(command)[1:])
        except SystemExit as end:
            if end.code:
                raise AssertionError(f"{command}: exit code {end.code}") from end
    if target:
        Path(target).write_text(printed.getvalue())
    return printed.getvalue()
