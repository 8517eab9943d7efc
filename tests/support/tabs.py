"""Pages of ComfyUI's frontend, for the browser tests."""

import contextlib
from collections.abc import Iterator

import comfy_host
import frontend


@contextlib.contextmanager
def checked_tab(chromium, url: str) -> Iterator[frontend.Frontend]:
    """An open page, not loaded yet. Scripts of ours must not fail in it."""
    with frontend.tab(chromium, url) as tab:
        failures = []
        tab.page.on("pageerror", lambda error: failures.append(str(error.stack)))
        yield tab
        assert not [failure for failure in failures if comfy_host.PACK_NAME in failure]
