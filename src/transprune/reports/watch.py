"""Serves the page of a run that goes on, to browsers on this machine alone; nothing is written."""

from __future__ import annotations

from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from transprune.errors import OptionError, RunFolderError, TranspruneError
from transprune.reports.comparison import frontier_page, points_of
from transprune.reports.pages import render
from transprune.reports.report import report_page
from transprune.reports.run_record import read_record
from transprune.reports.words import headline
from transprune.runtime import RunFolder

LOOPBACK = "127.0.0.1"
SECONDS = 10
"""How often a browser asks again."""
_OWN_NAMES = ("localhost", LOOPBACK, "[::1]")


def watch_server(run: str | Path, port: int = 0) -> ThreadingHTTPServer:
    """A server of a run's page, made anew from the folder for each request; `serve_forever` runs it.

    Args:
        run: The folder of a run or a frontier; it may be unfinished.
        port: A port of the loopback interface; 0: one that is free.

    Raises:
        RunFolderError: The folder is missing or not a run.
        OptionError: The port cannot be used.
    """
    folder = RunFolder.open(run)

    class Handler(_Handler):
        path_of_run = folder.path

    try:
        return ThreadingHTTPServer((LOOPBACK, port), Handler)
    except (OSError, OverflowError) as error:
        raise OptionError(
            f"cannot watch at port {port} of {LOOPBACK}: {error}; expected a free one from 1024 to 65535 (--port), or "
            "0 for any"
        ) from error


class _Handler(BaseHTTPRequestHandler):
    path_of_run: Path

    def do_GET(self) -> None:
        # Pages of other sites can send requests here under names of their own that lead to this machine.
        if self.headers.get("Host", "").rpartition(":")[0] not in _OWN_NAMES:
            self.send_error(HTTPStatus.FORBIDDEN)
            return
        folder = folder_of(self.path_of_run, self.path.partition("?")[0])
        if folder is None:
            self.send_error(HTTPStatus.NOT_FOUND)
            return
        body = page_of(folder).encode()
        self.send_response(HTTPStatus.OK)
        self.send_header("Content-Type", "text/html; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-store")
        self.send_header("Refresh", str(SECONDS))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Says nothing: a line every ten seconds helps nobody."""


def folder_of(run: Path, address: str) -> Path | None:
    """The folder whose page an address names: the run itself, or a point of a frontier; None: there is none."""
    name, _, file = address.strip("/").rpartition("/")
    if not name:
        return run if file in ("", "report.html", "frontier.html") else None
    points = {point.name: point for point in points_of(run)}
    return points.get(name) if file in ("", "report.html") else None


def page_of(run: Path) -> str:
    """The page of a folder as it is now, even if there is little to show yet."""
    try:
        folder = RunFolder.open(run)
        if folder.has("frontier.json"):
            return frontier_page(folder.read_json("frontier.json"))
        points = points_of(run)
        if points:
            return render("points.html.j2", title=f"{run.name}: so far", points=[_point(point) for point in points])
        return report_page(run)
    except TranspruneError as error:  # nothing to show yet, or a file that is just being written
        return render("points.html.j2", title=f"{run.name}: nothing to show yet", points=[("", str(error))])


def _point(run: Path) -> tuple[str, str]:
    """The name of a point, and what there is to say of it."""
    try:
        return run.name, headline(read_record(run))
    except RunFolderError:
        return run.name, "begins"
