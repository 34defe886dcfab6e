"""A headless Chromium, spoken to in the W3C WebDriver protocol that chromedriver serves over HTTP."""

import base64
import json
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

Found = TypeVar("Found")
Answer = Any

DRIVERS = ("chromedriver",)
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
ELEMENT = "element-6066-11e4-a52e-4f735466cecf"
"""Key under which the protocol names an element."""

RIGHT_ARROW = "\ue014"
DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))
"""Opens addresses of this machine whatever proxy the environment names."""


def find_programs() -> tuple[str, str] | None:
    """Paths of chromedriver and of Chromium, or nothing where one of them is not installed."""
    driver, browser = (next(filter(None, map(shutil.which, names)), None) for names in (DRIVERS, BROWSERS))
    return (driver, browser) if driver and browser else None


def free_port() -> int:
    """A port of the loopback interface that nobody listens at."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_for(condition: Callable[[], Found], what: str, seconds: float = 180.0) -> Found:
    """The first true value of a condition; AssertionError, naming what was waited for, when none comes."""
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, f"waited {seconds:g} s in vain for {what}"
        time.sleep(0.1)
    return found


def answers(url: str) -> bool:
    """Whether a server of this machine answers."""
    try:
        with DIRECT.open(url, timeout=5) as response:
            return bool(response.status == 200)
    except OSError:
        return False


class Browser:
    """One window.

    Args:
        driver: path of chromedriver.
        program: path of Chromium.
        downloads: folder for what is downloaded; it is made.
        size: width and height of the window in pixels.
    """

    def __init__(self, driver: str, program: str, downloads: Path, size: tuple[int, int] = (1440, 1300)) -> None:
        downloads.mkdir(parents=True, exist_ok=True)
        port = free_port()
        self.downloads = downloads
        self._process = subprocess.Popen(
            [driver, f"--port={port}"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        self._session = f"http://127.0.0.1:{port}"
        wait_for(lambda: answers(f"{self._session}/status"), "chromedriver", 30)
        options = {
            "binary": program,
            "args": [
                *("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars"),
                *(f"--window-size={size[0]},{size[1]}", f"--user-data-dir={downloads.parent / 'profile'}"),
            ],
            "prefs": {"download.default_directory": str(downloads)},
        }
        wanted = {"capabilities": {"alwaysMatch": {"goog:chromeOptions": options}}}
        self._session += f"/session/{self._call('POST', '/session', wanted)['sessionId']}"

    def open(self, url: str) -> None:
        """Goes to a page."""
        self._call("POST", "/url", {"url": url})

    def click(self, css: str) -> None:
        """Clicks the element that a selector finds first, once it is there."""
        self._call("POST", f"/element/{self._find(css)}/click", {})

    def type(self, css: str, text: str) -> None:
        """Sends keys to an element; to a file input the path of a file."""
        self._call("POST", f"/element/{self._find(css)}/value", {"text": text})

    def run(self, script: str, *arguments: Any) -> Any:
        """What a piece of JavaScript returns."""
        return self._call("POST", "/execute/sync", {"script": script, "args": list(arguments)})

    def text(self, css: str) -> str:
        """The text of an element; empty where there is none."""
        return str(self.run("const found = document.querySelector(arguments[0]); return found?.innerText ?? ''", css))

    def image(self, css: str) -> str:
        """Address of the picture in an element; empty where there is none."""
        return str(self.run("return document.querySelector(arguments[0] + ' img')?.src ?? ''", css))

    def new_image(self, css: str, old: str = "") -> str:
        """Address of the picture in an element once it is another one."""
        return wait_for(lambda: (now := self.image(css)) != old and now, f"a new picture in {css}")

    def screenshot(self, path: Path) -> None:
        """Saves what the window shows as PNG."""
        path.write_bytes(base64.b64decode(self._call("GET", "/screenshot")))

    def close(self) -> None:
        """Ends Chromium and its driver."""
        self._call("DELETE", "")
        self._process.terminate()
        self._process.wait(timeout=30)

    def _find(self, css: str) -> str:
        """The protocol's name of the first element that a selector finds."""
        query = {"using": "css selector", "value": css}
        found = wait_for(lambda: self._call("POST", "/elements", query), f"the element {css}")
        return str(found[0][ELEMENT])

    def _call(self, method: str, path: str, body: dict[str, Any] | None = None) -> Answer:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(
            self._session + path, data, {"Content-Type": "application/json"}, method=method
        )
        try:
            with DIRECT.open(request, timeout=120) as response:
                return json.load(response)["value"]
        except urllib.error.HTTPError as error:
            raise AssertionError(f"{method} {path}: {json.load(error)['value']['message']}") from error
