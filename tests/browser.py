"""A real browser before the real server: headless Chromium, driven by Selenium.

Where Chromium is not installed it is got from Debian's packages, which takes root; where that fails
the tests that need it are skipped, and say so.
"""

import json
import shutil
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from selenium import webdriver
from selenium.webdriver.chrome.options import Options
from selenium.webdriver.chrome.service import Service

from tests.debian import install

WAIT = 30.0  # seconds: the machine may be busy with other things


@cache
def programs() -> tuple[str, str] | None:
    """Chromium and its driver; None where there are none and none can be installed."""
    for attempt in (False, True):
        browser = shutil.which("chromium") or shutil.which("google-chrome")
        driver = shutil.which("chromedriver")
        if browser and driver:
            return browser, driver
        if not attempt:
            install("chromium", "chromium-driver")
    return None


@contextmanager
def browser(
    folder: Path, *, width: int = 1280, height: int = 900, dark: bool = False
) -> Iterator[Any]:
    """A fresh profile in a window of this size, which logs what it asks the network for."""
    if (found := programs()) is None:
        pytest.skip("Chromium and chromedriver are not here and could not be installed")
    options = Options()
    options.binary_location = found[0]
    for flag in (
        *("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"),
        *("--disable-background-networking", "--disable-component-update", "--no-first-run"),
        *("--disable-sync", "--disable-default-apps", "--hide-scrollbars", "--lang=en"),
        f"--window-size={width},{height}",
        f"--user-data-dir={folder}",
    ):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"performance": "ALL", "browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(found[1]))
    driver.set_page_load_timeout(2 * WAIT)
    size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    emulate_focus(driver, True)
    theme = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": theme})
    try:
        yield driver
    finally:
        driver.quit()


def emulate_focus(driver: Any, on: bool) -> None:
    """Whether every page has the focus, whatever window is before it.

    Without it a window gets the focus some time after it opens, and keys before that are lost.
    """
    driver.execute_cdp_cmd("Emulation.setFocusEmulationEnabled", {"enabled": on})


def asked(driver: Any) -> list[str]:
    """The addresses that the browser has asked for since the last call."""
    events = [json.loads(entry["message"])["message"] for entry in driver.get_log("performance")]
    sent = [
        e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"
    ]
    return [url for url in sent if not url.startswith(("data:", "chrome", "about:", "blob:"))]


@contextmanager
def served(app: Any, port: int = 0) -> Iterator[str]:
    """The app on a port of this computer, in a thread; its address."""
    with socket.socket() as listening:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(("127.0.0.1", port))
        server = uvicorn.Server(uvicorn.Config(app, log_level="error", access_log=False))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
        thread.start()
        end = time.monotonic() + WAIT
        while not server.started and time.monotonic() < end:
            time.sleep(0.02)
        try:
            yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join(WAIT)
