"""A Chromium for end-to-end tests and screenshots: find it, or install it, and open it.

Looked for: the program named by CHROMIUM_PATH, then the usual names; on a Debian machine as root it is installed.
"""

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
# Headless, and quiet on the network: a test talks to the server on this machine alone.
ARGUMENTS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
)  # fmt: skip


class NoBrowser(RuntimeError):
    """There is no Chromium, and none can be installed."""


def find() -> str:
    """Path of a Chromium; installs one where that is possible.

    Raises NoBrowser, or FileNotFoundError when CHROMIUM_PATH names nothing.
    """
    named = os.environ.get("CHROMIUM_PATH")
    if named:
        if not Path(named).is_file():
            raise FileNotFoundError(f"CHROMIUM_PATH={named} does not exist")
        return named
    return _installed() or _install()


def _installed() -> str | None:
    return next(filter(None, map(shutil.which, NAMES)), None)


def _install() -> str:
    if shutil.which("apt-get") is None or os.geteuid() != 0:
        raise NoBrowser("no Chromium found: install it, or name it in CHROMIUM_PATH")
    quiet = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    for arguments in (["update"], ["install", "--yes", "--no-install-recommends", "chromium", "fonts-dejavu-core"]):
        done = subprocess.run(["apt-get", "-qq", *arguments], env=quiet, capture_output=True, text=True)
        if done.returncode:
            raise NoBrowser(f"apt-get {arguments[0]} failed: {(done.stdout + done.stderr)[-500:]}")
    found = _installed()
    if found is None:
        raise NoBrowser("apt-get installed no Chromium")
    return found


@contextlib.contextmanager
def chromium(path: str | None = None) -> Iterator:
    """A browser of Playwright's synchronous API. path: as from `find`."""
    from playwright.sync_api import sync_playwright

    path = path or find()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=list(ARGUMENTS))
        try:
            yield browser
        finally:
            browser.close()
