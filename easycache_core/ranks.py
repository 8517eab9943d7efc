"""Several processes that sample one latent together decide together (sequence and tensor parallelism).

A network that is spread over ranks hangs the first time one rank runs it and another does not, which is what ranks that
decide for themselves come to: their latents may differ in the last bits, and one of them is below the threshold. So at
each evaluation every rank writes what it measured, reads what all others wrote, and decides by that alone.

They write to torch.distributed's key-value store, not through a collective: one that a rank does not enter would block
the others, and a rank that raises could not know which one they are in. Each writes one row per evaluation and reads
all. A rank that leaves writes the reason in place of its next row, so the others know why at their next decision.
"""

import json
import struct
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch.distributed as dist

from .config import require_kind
from .reading import Measurements, Products, Reading

MAX_POLL_INTERVAL = 0.01  # seconds
# At the head of a row: step, cache_lost, force, changed, windows_moved, finite, whether measured, whether against
# another.
FLAGS = 8
PRODUCTS = len(Products._fields)
NORMS = len(Measurements._fields) - 1  # all but the products


class RankLost(RuntimeError):
    """Ranks have left the run, or do not come to an evaluation. ranks: which, in the whole world's count."""

    def __init__(self, message: str, ranks: Sequence[int] = ()):
        super().__init__(message)
        self.ranks = tuple(ranks)


class RanksDiffer(RuntimeError):
    """Ranks were given different settings, or are at different steps: they cannot decide alike."""


@dataclass(frozen=True)
class Ranks:
    """The processes that sample together.

    Args:
        group: their process group, None for all. Replicas that sample something different each (data parallelism) need
            not wait for each other: give each replica its own group, or None in place of Ranks for a replica of one
            process.
        sharded: whether each rank has a slice of the latent and of the network's output. Norms are then those of the
            whole, and decisions are those of a single process that has all of it. False: each rank has all of it,
            perhaps not bit for bit, and the rank with the largest error decides.
        timeout: seconds that one rank waits for another at an evaluation before it raises RankLost. Ranks that leave
            by themselves are missed at once.

    Raises:
        ValueError: a timeout that is not positive.
    """

    group: "dist.ProcessGroup | None" = None
    sharded: bool = False
    timeout: float = 600.0

    def __post_init__(self):
        if not self.timeout > 0:
            raise ValueError(f"timeout must be a positive number of seconds, got {self.timeout!r}")


ALL_RANKS = Ranks()


def join(ranks: Ranks | None, settings: str) -> "RankGroup | None":
    """Bring the ranks together for a run; None if this process is alone.

    Raises RanksDiffer where settings differ, RankLost if a rank does not come, ValueError if this one is no member,
    TypeError for what are no Ranks.
    """
    require_kind("ranks", isinstance(ranks, Ranks | None), "Ranks or None", ranks)
    if ranks is None or not dist.is_available() or not dist.is_initialized():
        return None
    if ranks.group == dist.GroupMember.NON_GROUP_MEMBER:
        raise ValueError("this process is not in the group of ranks; give it its own, or ranks=None to decide alone")
    members = dist.get_process_group_ranks(dist.group.WORLD if ranks.group is None else ranks.group)
    return RankGroup(ranks, members, settings) if len(members) > 1 else None


class RankGroup:
    """The ranks of one run. Every member calls `reduce` once per evaluation, and `leave` at its end."""

    def __init__(self, ranks: Ranks, members: Sequence[int], settings: str):
        self._sharded, self._timeout = ranks.sharded, ranks.timeout
        self._members = members
        self._me = dist.get_rank()
        self._store = dist.distributed_c10d._get_default_store()
        self._base = "easycache/" + "-".join(map(str, members))
        self._evaluation, self._has_left = 0, False
        self._run = self._start(f"{settings}, sharded={ranks.sharded}")

    def _start(self, settings: str) -> str:
        """The run's id, from the first member, which compares all settings. Random, as ranks may disagree on how many
        runs there were (starts that failed).
        """
        request, requests = uuid.uuid4().hex, f"{self._base}/requests"
        self._call("set", f"{requests}/{self._me}", f"{request} {settings}")
        try:
            if self._me == self._members[0]:
                self._lead(requests, run=request)
            # The first member may come as late as any, and then wait for the others.
            reply = json.loads(self._take(f"{self._base}/{request}", self._members[:1], 2 * self._timeout)[0])
        except BaseException:
            self._call("delete_key", f"{requests}/{self._me}")
            raise
        if reply["complaint"]:
            raise RankLost(reply["complaint"], reply["late"]) if reply["late"] else RanksDiffer(reply["complaint"])
        return reply["run"]

    def _lead(self, requests: str, run: str) -> None:
        """Wait for all members' requests and reply to each."""
        late, complaint = (), ""
        try:
            self._wait_for(requests, self._members, self._timeout)
        except RankLost as lost:
            late, complaint = lost.ranks, str(lost)
        came = [rank for rank in self._members if rank not in late]
        received = [text.decode().split(" ", 1) for text in self._take(requests, came, self._timeout)]
        expected = received[0][1]
        for rank, (_, settings) in zip(came, received, strict=True):
            if not complaint and settings != expected:
                complaint = f"rank {rank} has {settings}, but rank {came[0]} has {expected}"
        for request, _ in received:
            reply = json.dumps({"run": run, "late": late, "complaint": complaint})
            self._call("set", f"{self._base}/{request}/{self._members[0]}", reply)

    def reduce(self, mine: Reading) -> Reading:
        """The readings of all ranks as one, the same on each of them. Raises RanksDiffer, RankLost.

        Norms have one entry per part where the latent is sharded, and else one per rank and part.
        """
        measured = mine.measured or Measurements(())
        row = [mine.step, mine.cache_lost, mine.force, mine.changed, mine.windows_moved, mine.finite]
        row += [mine.measured is not None, len(measured.output_change) > 0, *mine.numel]
        row += [np.nan if mine.sigma is None else mine.sigma, *(measured.products or [np.nan] * PRODUCTS)]
        for norms in (mine.input_change, *measured[:NORMS]):
            row += norms or [np.nan] * len(mine.numel)
        return self._reduced(mine, self._all_gather(row))

    def _reduced(self, mine: Reading, rows: np.ndarray) -> Reading:
        step, cache_lost, force, changed, windows_moved, finite, measured, compared = rows[:, :FLAGS].T
        if len(set(step)) > 1:
            steps = [int(s) for s in step]
            raise RanksDiffer(f"{_named(self._members)} are at steps {steps}: they do not sample the same")
        parts = len(mine.numel)
        numel, rest = rows[:, FLAGS : FLAGS + parts], rows[:, FLAGS + parts :]
        sigma, products, norms = rest[0, 0], rest[:, 1 : 1 + PRODUCTS], rest[:, 1 + PRODUCTS :]
        norms = norms.reshape(len(rows), 1 + NORMS, parts).swapaxes(0, 1)  # (norms, ranks, parts)
        if self._sharded:
            known = np.where(numel > 0, norms, 0)  # there is no mean of nothing
            norms = (known * numel).sum(1) / numel.sum(0)
        share = numel.sum(1, keepdims=True) / numel.sum()
        products = (np.where(share > 0, products, 0) * share).sum(0).tolist()
        input_change, *norms = norms.reshape(1 + NORMS, -1).tolist()

        lost, agreed = bool(cache_lost.any()), None
        if measured.all() and not lost:
            agreed = Measurements.of([*norms, products]) if compared.all() else Measurements(norms[0])
        return mine._replace(
            sigma=None if mine.sigma is None else float(sigma),
            force=bool(force.any()),
            changed=bool(changed.any()),
            windows_moved=bool(windows_moved.any()),
            finite=bool(finite.all()),
            input_change=None if mine.input_change is None or lost else input_change,
            measured=agreed,
            cache_lost=lost,
        )

    def _all_gather(self, row: Sequence[float]) -> np.ndarray:
        """All members' rows, (ranks, entries) in double precision."""
        if self._has_left:
            raise RuntimeError("this run's controller was released")
        here, before = f"{self._run}/{self._evaluation}", f"{self._run}/{self._evaluation - 1}"
        self._call("set", f"{here}/{self._me}", b"+" + struct.pack(f"<{len(row)}d", *row))
        self._evaluation += 1  # the reason for leaving goes where the others look next
        texts = self._wait_for(here, self._members, self._timeout)
        gone = {rank: text[1:].decode() for rank, text in zip(self._members, texts, strict=True) if text[:1] == b"-"}
        if gone:
            reasons = "; ".join(f"rank {rank}: {reason}" for rank, reason in gone.items())
            raise RankLost(f"left before evaluation {self._evaluation}, so no rank can go on: {reasons}", gone)
        self._call("delete_key", f"{before}/{self._me}")  # who is here has read what was there
        return np.array([struct.unpack(f"<{len(row)}d", text[1:]) for text in texts])

    def _wait_for(self, folder: str, ranks: Sequence[int], seconds: float) -> list[bytes]:
        """What these ranks have written to the folder."""
        keys, interval, deadline = [f"{folder}/{rank}" for rank in ranks], 1e-4, time.monotonic() + seconds
        while not self._call("check", keys):
            if time.monotonic() > deadline:
                late = [rank for rank, key in zip(ranks, keys, strict=True) if not self._call("check", [key])]
                raise RankLost(
                    f"did not come to evaluation {self._evaluation} within {seconds:g} s: {_named(late)}. Processes "
                    "that do not sample together must not share a group (easycache_core.Ranks)",
                    late,
                )
            time.sleep(interval)
            interval = min(1.5 * interval, MAX_POLL_INTERVAL)
        many = self._store.has_extended_api()  # a FileStore has not
        return self._call("multi_get", keys) if many else [self._call("get", key) for key in keys]

    def _call(self, method: str, *args):
        """A method of the store."""
        try:
            return getattr(self._store, method)(*args)
        except RuntimeError as error:
            raise RankLost("torch.distributed's store does not answer: has the process that keeps it ended?") from error

    def _take(self, folder: str, ranks: Sequence[int], seconds: float) -> list[bytes]:
        """What these ranks have written to the folder, which is empty then."""
        texts = self._wait_for(folder, ranks, seconds)
        for rank in ranks:
            self._call("delete_key", f"{folder}/{rank}")
        return texts

    def leave(self, reason: str) -> None:
        """Write the reason for the others, and wait for nobody. The last one to leave clears up."""
        if self._has_left:
            return
        self._has_left = True
        try:
            self._store.set(f"{self._run}/{self._evaluation}/{self._me}", b"-" + reason.encode(errors="replace"))
            if self._store.add(f"{self._run}/left", 1) == len(self._members):
                for evaluation in (self._evaluation - 1, self._evaluation):
                    for rank in self._members:
                        self._store.delete_key(f"{self._run}/{evaluation}/{rank}")
                self._store.delete_key(f"{self._run}/left")
        except RuntimeError:
            pass  # where there is no store any more, the others have found out


def _named(ranks: Sequence[int]) -> str:
    return f"rank{'s' * (len(ranks) > 1)} {', '.join(map(str, ranks))}"
