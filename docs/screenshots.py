"""Makes the README's pictures from a real run: the terminal, and the report as a browser shows it.

transprune run resnet20 --data digits --budget macs=0.5 --preset quick --out runs/first
python docs/screenshots.py runs/first

Chromium must be installed. Written are docs/images/terminal.svg (what `transprune evaluate` prints on a terminal) and
docs/images/report.png; nothing in them is drawn by hand.
"""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys
from pathlib import Path

from rich.console import Console
from rich.text import Text

from browser import Browser
from transprune.reports.report import write_report

IMAGES = Path(__file__).parent / "images"
WIDTH, HEIGHT = 1280, 1240
"""Pixels of the picture of the report: its first parts."""
COLUMNS = 78
FONT_FACE = re.compile(r"@font-face \{.*?\}\s*", re.DOTALL)


def terminal_output(*arguments: str) -> str:
    """What a command prints on a terminal of `COLUMNS` columns, with its colours."""
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        [sys.executable, "-m", "transprune", *arguments],
        stdout=theirs,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "COLUMNS": str(COLUMNS), "TERM": "xterm-256color"},
    ):
        os.close(theirs)
        printed = b""
        while part := _read(ours):
            printed += part
    os.close(ours)
    return printed.decode().replace("\r\n", "\n")


def _read(terminal: int) -> bytes:
    """What is there to read; nothing when the program has ended, which Linux reports as an error."""
    try:
        return os.read(terminal, 1 << 16)
    except OSError:
        return b""


def terminal_picture(run: str) -> Path:
    """The table of teacher and student."""
    file, arguments = IMAGES / "terminal.svg", ("evaluate", run)
    with Path(os.devnull).open("w") as nowhere:
        console = Console(record=True, width=COLUMNS, file=nowhere, force_terminal=True)
        console.print(f"$ {' '.join(('transprune', *arguments))}", style="bold", highlight=False)
        console.print(Text.from_ansi(terminal_output(*arguments)))
        # without the fonts that rich would fetch from the network
        file.write_text(FONT_FACE.sub("", console.export_svg(title="transprune")), encoding="utf-8")
    return file


def report_picture(run: str) -> Path:
    """The top of the report, in light colours."""
    report = write_report(Path(run))
    with Browser() as browser:
        page = browser.open(report, width=WIDTH, height=HEIGHT)
        return page.screenshot(IMAGES / "report.png", is_whole=False)


def main() -> None:
    """Makes both pictures."""
    run = sys.argv[1]
    for picture in (terminal_picture(run), report_picture(run)):
        print(f"wrote {picture}")


if __name__ == "__main__":
    main()
