"""Find, or install, and open a Chromium, for end-to-end tests and screenshots.

Searched in this order: the program that CHROMIUM_PATH names, the usual names. On Debian it is installed if missing and
if the user is root.
"""

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
# Headless, and without requests to other machines.
ARGUMENTS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
)  # fmt: skip


class NoBrowser(RuntimeError):
    """No Chromium was found, and none could be installed."""


def find() -> str:
    """Path of a Chromium; installs one if there is none.

    Raises NoBrowser if that fails, and FileNotFoundError if CHROMIUM_PATH names no file.
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
    """A browser of Playwright's synchronous API, closed at the end. path: of a Chromium, by default that of `find`."""
    from playwright.sync_api import sync_playwright

    path = path or find()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=list(ARGUMENTS))
        try:
            yield browser
        finally:
            browser.close()
