"""Makes the pictures of terminal and pages from real runs; nothing in them is drawn by hand.

    transprune run resnet20 --data digits --budget latency=0.5 --preset quick --out runs/first
    transprune run resnet20 --data digits --budget latency=0.5 --preset quick --seed 1 --out runs/second
    python docs/screenshots.py runs/first runs/second

Chromium must be installed. Into docs/images go terminal.svg (what `transprune evaluate` prints on a terminal),
report.png (the top of the report), and in pages the report, the comparison of all runs, and what `transprune watch`
shows in the middle of the search: on a screen, in the dark, on a phone and in print.
"""

from __future__ import annotations

import json
import os
import pty
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from threading import Thread
from urllib.request import urlopen

from PIL import Image
from rich.console import Console
from rich.text import Text

from browser import Browser
from transprune.reports.report import write_report
from transprune.reports.watch import watch_server

IMAGES = Path(__file__).parent / "images"
WIDTH, HEIGHT = 1280, 1240
"""Pixels of the picture of the report: its first parts."""
LOOKS = {
    "light": {"width": WIDTH},
    "dark": {"width": WIDTH, "is_dark": True},
    "phone": {"width": 390},
    "print": {"width": 794, "media": "print"},
}
"""How each page is shown; 794 CSS pixels are the width of A4."""
COLORS = 128
"""Colours of a picture of a whole page, which keep it small; rare ones stay."""
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


def watched(run: str) -> bytes:
    """What `transprune watch` sent to a browser in the middle of the search of a run."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place, Path(run).name)
        folder.mkdir()
        for name in ("config.toml", "data.json", "environment.json", "space.json"):
            shutil.copyfile(Path(run, name), folder / name)
        lines = Path(run, "journal.jsonl").read_text().splitlines(keepends=True)
        entries = [json.loads(line) for line in lines]
        epochs = [place for place, entry in enumerate(entries) if entry.get("phase") == "search" and "epoch" in entry]
        (folder / "journal.jsonl").write_text("".join(lines[: epochs[len(epochs) // 2] + 1]))
        with watch_server(folder) as server:
            thread = Thread(target=server.serve_forever)
            thread.start()
            with urlopen(f"http://127.0.0.1:{server.server_port}/") as answer:
                page: bytes = answer.read()
            server.shutdown()
            thread.join()
    return page


def page_pictures(runs: list[str], browser: Browser) -> Iterator[Path]:
    """The whole of each page, in every look."""
    (IMAGES / "pages").mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as place:
        comparison, watching = Path(place, "compare.html"), Path(place, "watch.html")
        watching.write_bytes(watched(runs[0]))
        command = [sys.executable, "-m", "transprune", "compare", *runs, "--html", str(comparison)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        pages = {"report": Path(runs[0], "report.html"), "compare": comparison, "watch": watching}
        for name, page in pages.items():
            for look, how in LOOKS.items():
                file = browser.open(page, **how).screenshot(IMAGES / "pages" / f"{name}-{look}.png")
                with Image.open(file) as picture:
                    few = picture.convert("RGB").quantize(COLORS, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
                few.save(file, optimize=True)
                yield file


def main() -> None:
    """Makes all pictures."""
    runs = sys.argv[1:]
    print(f"wrote {terminal_picture(runs[0])}")
    report = write_report(Path(runs[0]))
    with Browser() as browser:
        top = browser.open(report, width=WIDTH, height=HEIGHT).screenshot(IMAGES / "report.png", is_whole=False)
        for picture in (top, *page_pictures(runs, browser)):
            print(f"wrote {picture}")


if __name__ == "__main__":
    main()
