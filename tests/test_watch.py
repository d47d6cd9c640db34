"""The page of a run that goes on."""

from __future__ import annotations

import threading
import urllib.error
import urllib.request
from contextlib import contextmanager

import pytest

from fake_run import fake_run
from transprune.errors import OptionError, RunFolderError
from transprune.reports.watch import watch_server


@contextmanager
def served(run):
    """The address of a server that runs."""
    with watch_server(run) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def page(address, **headers):
    with urllib.request.urlopen(urllib.request.Request(address, headers=headers), timeout=30) as answer:
        return answer.read().decode(), answer.headers


def refusal(address, **headers) -> int:
    """The status of an answer that is no page."""
    with pytest.raises(urllib.error.HTTPError) as error:
        page(address, **headers)
    with error.value as answer:
        return answer.code


def test_the_page_follows_the_folder(tmp_path):
    folder = fake_run(tmp_path / "run", epochs=1, until="teacher")
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    with served(folder) as address:
        text, headers = page(address)
        assert "teacher training at epoch 1 of 1" in text
        assert headers["Refresh"] == "10"
        assert headers["Cache-Control"] == "no-store"
        assert {file.name: file.read_bytes() for file in folder.iterdir()} == before  # it writes nothing
        fake_run(folder, epochs=2, until="search")
        assert "no student is measured yet" in page(f"{address}/report.html")[0]


def test_a_run_without_a_step_says_so(tmp_path):
    with served(fake_run(tmp_path / "run", until="config")) as address:
        assert "no step has left a result" in page(address)[0]


def test_a_frontier_shows_its_points_before_its_curve(tmp_path):
    folder = fake_run(tmp_path / "curve", until="config")
    fake_run(folder / "macs-0.3", epochs=1, until="teacher")
    with served(folder) as address:
        text = page(address)[0]
        assert 'href="/macs-0.3/report.html"' in text
        assert "teacher training at epoch 1 of 1" in text
        assert "transprune report" in page(f"{address}/macs-0.3/report.html")[0]


@pytest.mark.parametrize("path", ["/config.toml", "/../config.toml", "/macs-0.3/config.toml", "/nothing/report.html"])
def test_nothing_but_pages_is_served(tmp_path, path):
    folder = fake_run(tmp_path / "curve", until="config")
    fake_run(folder / "macs-0.3", epochs=1, until="teacher")
    with served(folder) as address:
        assert refusal(address + path) == 404


def test_other_names_for_this_machine_are_refused(tmp_path):
    with served(fake_run(tmp_path / "run", epochs=1)) as address:
        assert page(address, Host="localhost:1")
        assert refusal(address, Host="evil.example:80") == 403


def test_only_this_machine_is_listened_to(tmp_path):
    with watch_server(fake_run(tmp_path / "run", until="config")) as server:
        assert server.server_address[0] == "127.0.0.1"


def test_a_port_in_use_is_named(tmp_path):
    folder = fake_run(tmp_path / "run", until="config")
    with watch_server(folder) as server, pytest.raises(OptionError, match=f"at port {server.server_port}.*--port"):
        watch_server(folder, server.server_port)
    with pytest.raises(OptionError, match="at port 70000"):
        watch_server(folder, 70_000)


def test_a_folder_that_is_no_run_is_refused(tmp_path):
    with pytest.raises(RunFolderError):
        watch_server(tmp_path)
