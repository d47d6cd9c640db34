"""Builds the documentation site into build/site, with every link checked.

    python docs/site.py

The pages lie in the repository so that their links hold there. They are gathered in build/pages under the same paths,
with every file that they link to, so the same links hold on the site. The README is its first page, the decisions get
a list, and the reference is made from the docstrings of all public names.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
PAGES = ROOT / "build" / "pages"
OUTSIDE = (
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "LOG.md",
    "benchmarks/README.md",
    "benchmarks/reproduce.md",
    "benchmarks/shootout/README.md",
    "benchmarks/shootout/results/table.md",
    "examples/README.md",
)
"""Pages that do not lie in docs."""
LINK = re.compile(r"\]\((?!https?:)([^)#\s]+)(?:#[^)]*)?\)")
BLOCK = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)


def sources() -> dict[str, Path]:
    """The pages by their path on the site."""
    within = {str(page.relative_to(ROOT)): page for page in sorted((ROOT / "docs").rglob("*.md"))}
    return {"index.md": ROOT / "README.md", **{name: ROOT / name for name in OUTSIDE}, **within}


def linked_files(page: Path) -> set[Path]:
    """The files of the repository that a page links to, other than pages.

    Raises:
        FileNotFoundError: There is no such file.
    """
    found = {(page.parent / target).resolve() for target in LINK.findall(BLOCK.sub("", page.read_text()))}
    for file in found:
        if not file.exists():
            raise FileNotFoundError(f"{page.relative_to(ROOT)} links to {file}, which is not there")
    return {file for file in found if file.is_file() and file.suffix != ".md"}


def decisions() -> str:
    """The list of the decisions, as a page beside them."""
    lines = []
    for page in sorted((ROOT / "docs" / "decisions").glob("0*.md")):
        title = page.read_text().splitlines()[0].removeprefix("# ")
        lines.append(f"- [{title.replace('. ', ': ', 1)}]({page.name})")
    return "# Decisions\n\nChoices with their reasons and their price.\n\n" + "\n".join(lines) + "\n"


def gather() -> None:
    """Fills build/pages."""
    shutil.rmtree(PAGES, ignore_errors=True)
    for name, page in sources().items():
        place = PAGES / name
        place.parent.mkdir(parents=True, exist_ok=True)
        text = page.read_text()
        place.write_text(text.replace("](README.md", "](index.md"))
        for file in linked_files(page):
            copy = PAGES / file.relative_to(ROOT)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, copy)
    (PAGES / "docs" / "decisions" / "index.md").write_text(decisions())


def main() -> None:
    """Builds the site; the exit code is 1 where a link or a name of the reference leads nowhere."""
    gather()
    zensical = Path(sys.executable).parent / "zensical"
    built = subprocess.run(
        [zensical, "build", "--strict", "--clean"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if built.returncode:
        sys.exit(f"{built.stdout}\n{built.stderr}")
    print(f"wrote {ROOT / 'build' / 'site' / 'index.html'}")


if __name__ == "__main__":
    main()
