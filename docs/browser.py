"""A headless Chromium, driven through its debugging pipe: no driver and no port is needed.

with Browser() as browser:
    page = browser.open(Path("report.html"), width=390)
    page.screenshot(Path("report.png"))
"""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any, Self

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
SWITCHES = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-dev-shm-usage",
    "--no-first-run", "--hide-scrollbars", "--remote-debugging-pipe",
)  # fmt: skip


def find_browser() -> str | None:
    """The path of an installed Chromium, if there is one."""
    return next((path for name in NAMES if (path := shutil.which(name))), None)


class Browser:
    """A Chromium with a profile of its own, closed at the end of the block."""

    def __enter__(self) -> Self:
        program = find_browser()
        if program is None:
            raise FileNotFoundError(f"cannot start a browser: found none of {', '.join(NAMES)}; install chromium")
        self._profile = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        (reads, self._to), (self._from, writes) = os.pipe(), os.pipe()
        # Chromium reads its commands from descriptor 3 and answers on descriptor 4.
        command = f'exec "$0" "$@" 3<&{reads} 4>&{writes}'
        switches = [*SWITCHES, f"--user-data-dir={self._profile.name}", "about:blank"]
        self._process = subprocess.Popen(
            ["/bin/bash", "-c", command, program, *switches],
            pass_fds=(reads, writes),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(reads)
        os.close(writes)
        self._buffer, self._calls = b"", 0
        self.events: list[dict[str, Any]] = []
        return self

    def __exit__(self, *_: object) -> None:
        self.call("Browser.close")
        self._process.wait(timeout=30)
        os.close(self._to)
        os.close(self._from)
        self._profile.cleanup()

    def call(self, method: str, session: str | None = None, **parameters: Any) -> dict[str, Any]:
        """Gives a command of the debugging protocol and waits for its answer."""
        self._calls += 1
        message = {"id": self._calls, "method": method, "params": parameters}
        if session:
            message["sessionId"] = session
        os.write(self._to, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._read()
            if answer.get("id") == self._calls:
                if "error" in answer:
                    raise RuntimeError(f"cannot do {method} in the browser: {answer['error']}")
                return dict(answer["result"])
            self.events.append(answer)

    def wait_for(self, event: str) -> None:
        """Waits until an event has come since it was last waited for."""
        while not any(each.get("method") == event for each in self.events):
            self.events.append(self._read())

    def open(self, file: Path, *, width: int, height: int = 900, media: str = "screen", is_dark: bool = False) -> Page:
        """Opens a file in a new page of this size, on a screen or in print, light or dark."""
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        self.events.clear()
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable", session)
        page = Page(self, session)
        page.resize(width, height)
        features = [{"name": "prefers-color-scheme", "value": "dark" if is_dark else "light"}]
        self.call("Emulation.setEmulatedMedia", session, media=media, features=features)
        self.call("Page.navigate", session, url=file.resolve().as_uri())
        self.wait_for("Page.loadEventFired")
        return page

    def _read(self) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            part = os.read(self._from, 1 << 16)
            if not part:
                raise RuntimeError("cannot go on in the browser: it has ended")
            self._buffer += part
        message, _, self._buffer = self._buffer.partition(b"\0")
        return dict(json.loads(message))


class Page:
    """One page of the browser."""

    def __init__(self, browser: Browser, session: str) -> None:
        self._browser, self._session = browser, session

    def resize(self, width: int, height: int) -> None:
        """Sets the size of the window in CSS pixels."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        self._browser.call("Emulation.setDeviceMetricsOverride", self._session, **size)

    def run(self, script: str) -> Any:
        """The value of a JavaScript expression."""
        answer = self._browser.call("Runtime.evaluate", self._session, expression=script, returnByValue=True)
        if "exceptionDetails" in answer:
            raise RuntimeError(f"cannot run this in the page: {answer['exceptionDetails']}")
        return answer["result"].get("value")

    def press(self, key: str) -> None:
        """Presses a key, such as Tab."""
        code = {"Tab": 9, "Enter": 13}[key]
        text = {"text": "\r"} if key == "Enter" else {}
        for kind in ("keyDown", "keyUp"):
            parameters = {"type": kind, "key": key, "windowsVirtualKeyCode": code, **text}
            self._browser.call("Input.dispatchKeyEvent", self._session, **parameters)

    def complaints(self) -> list[str]:
        """What the page wrote to the console or got wrong, since it was opened."""
        kinds = ("Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Log.entryAdded")
        return [json.dumps(event["params"])[:500] for event in self._browser.events if event.get("method") in kinds]

    def requests(self) -> list[str]:
        """Addresses that the page asked for, since it was opened."""
        sent = [event for event in self._browser.events if event.get("method") == "Network.requestWillBeSent"]
        return [event["params"]["request"]["url"] for event in sent]

    def screenshot(self, file: Path, *, is_whole: bool = True) -> Path:
        """Writes the page as it looks; the whole of it, or what the window shows."""
        if is_whole:
            width, height = self.run("[innerWidth, Math.ceil(document.documentElement.scrollHeight)]")
            self.resize(width, height)
        answer = self._browser.call("Page.captureScreenshot", self._session, format="png")
        file.write_bytes(base64.b64decode(answer["data"]))
        return file
