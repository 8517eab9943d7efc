"""Several processes of one test, that may wait for each other."""

import subprocess
import time
from collections.abc import Sequence
from pathlib import Path


def run_together(commands: Sequence[Sequence[str]], logs: Sequence[Path], seconds: float) -> list[int]:
    """Start all commands, each with a file for its output, and return their exit codes.

    Whatever happens none of them outlives the call. Raises subprocess.TimeoutExpired if they take longer together.
    """
    processes = []
    try:
        for command, log in zip(commands, logs, strict=True):
            with log.open("w") as told:
                processes.append(subprocess.Popen(command, stdout=told, stderr=subprocess.STDOUT))
        deadline = time.monotonic() + seconds
        for process in processes:
            process.wait(deadline - time.monotonic())
    finally:
        for process in processes:
            process.kill()
            process.wait()
    return [process.returncode for process in processes]
