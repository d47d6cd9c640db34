"""The documentation site builds with every link checked, and nothing is missing from it."""

import re
import subprocess
import sys
import tomllib

import pytest

import transprune
from documents import ROOT

REFERENCE = {page.stem: page.read_text() for page in (ROOT / "docs" / "reference").glob("*.md")}
"""The pages of the reference by topic."""


def test_the_site_builds_with_strict_links(capfd):
    pytest.importorskip("zensical", reason="needs the extra docs")
    subprocess.run([sys.executable, ROOT / "docs" / "site.py"], check=True)
    site = ROOT / "build" / "site"
    assert capfd.readouterr().out.endswith("build/site/index.html\n")
    reference = "".join(page.read_text() for page in (site / "docs" / "reference").rglob("*.html"))
    for name in transprune.__all__:
        assert name == "__version__" or f'id="transprune.{name}"' in reference, name
    for page in site.rglob("*.html"):
        assert not re.search(r'<(?:script|link|img)[^>]+(?:src|href)="https?:(?!//zensical)', page.read_text()), page


def test_the_reference_names_every_public_name_once():
    named = re.findall(r"^::: transprune\.(\w+)$", "\n".join(REFERENCE.values()), re.MULTILINE)
    assert sorted(named) == sorted(set(transprune.__all__) - {"__version__"})


def test_the_overview_of_the_reference_leads_to_each_of_its_pages():
    overview = (ROOT / "docs" / "reference.md").read_text()
    assert set(re.findall(r"\]\(reference/(\w+)\.md\)", overview)) == REFERENCE.keys()


def test_every_page_is_in_the_navigation():
    configured = tomllib.loads((ROOT / "zensical.toml").read_text())["project"]["nav"]
    named = set(re.findall(r"[\w/-]+\.md", str(configured)))
    pages = {str(page.relative_to(ROOT)) for page in (ROOT / "docs").rglob("*.md")}
    assert {page for page in pages if not page.startswith("docs/decisions/")} <= named


def test_every_page_can_be_reached_under_a_heading():
    for page in (ROOT / "docs").rglob("*.md"):
        assert page.read_text().startswith("# "), page
