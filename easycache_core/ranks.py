"""Several processes that sample one latent together decide together (sequence and tensor parallelism).

A network that is spread over ranks hangs the first time one rank runs it and another does not, and ranks that decide
for themselves do come to that: their latents may differ in the last bits, and one of them lies below the threshold.
So at each evaluation every rank says what it measured, hears what all others did, and decides by that alone. All have
the same numbers bit for bit, hence the same decision.

What is said goes through the key-value store that torch.distributed has from the start, not through a collective. A
collective that one rank does not come to blocks the others, on a GPU until the process is ended; a rank that raises or
is interrupted would have to enter one to say so, and nobody knows what the others are in by then. In the store each
rank lays down a row an evaluation and reads all of them. One that leaves lays down its farewell in place of its next
row and goes, so the others find out as soon as they come to decide, and are told why.
"""

import json
import struct
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.distributed as dist

from .decision import read
from .predictor import Movements, Place, Seen

LONGEST_NAP = 0.01  # seconds between two looks at the store, in the end


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

    group: their process group, None for all. Replicas that sample something different each (data parallelism) need not
        wait for each other: give each replica's own group, or None in place of Ranks for a replica of one process.
    sharded: whether each rank has a slice of the latent and of the network's output. Norms are then those of the whole,
        and decisions are those of a single process that has all of it. False: each rank has all of it, perhaps not
        bit for bit, and the rank with the largest error decides.
    timeout: seconds that one rank waits for another at an evaluation before it raises RankLost. Ranks that say farewell
        are found missing at once.

    Raises ValueError for a timeout that is not positive.
    """

    group: "dist.ProcessGroup | None" = None
    sharded: bool = False
    timeout: float = 600.0

    def __post_init__(self):
        if not self.timeout > 0:
            raise ValueError(f"timeout must be a positive number of seconds, got {self.timeout!r}")


EVERYONE = Ranks()


class Word(NamedTuple):
    """What a rank says at an evaluation, or all of them together.

    lost: had to let go of its cache. force, changed: as in CacheController.begin. healthy: what was stored last is
    finite. elements: how many there are to norms, an entry a stream. input_change, place, seen: what it measured here,
    and where the network ran last; None if not known.
    """

    step: int
    lost: bool
    force: bool | torch.Tensor
    changed: bool | torch.Tensor
    healthy: bool | torch.Tensor
    elements: Sequence[int]
    input_change: torch.Tensor | None
    place: Place | None
    seen: Seen | None


FLAGS = 7  # step, lost, force, changed, healthy, whether there is anything seen, and anything seen before that


def convene(ranks: Ranks | None, streams: int, terms: str) -> "Meeting | None":
    """Call the ranks together for a run; None if this process is alone. streams: how many at most.

    Raises RanksDiffer if they do not come with the same terms, RankLost if one does not come, and ValueError if this
    process is no member of the group.
    """
    if ranks is None or not dist.is_available() or not dist.is_initialized():
        return None
    if ranks.group == dist.GroupMember.NON_GROUP_MEMBER:
        raise ValueError("this process is not in the group of ranks; give it its own, or ranks=None to decide alone")
    members = dist.get_process_group_ranks(dist.group.WORLD if ranks.group is None else ranks.group)
    return Meeting(ranks, members, streams, terms) if len(members) > 1 else None


class Meeting:
    """The ranks of one run. Every member calls `agree` once an evaluation, and `leave` at its end."""

    def __init__(self, ranks: Ranks, members: Sequence[int], streams: int, terms: str):
        self._sharded, self._timeout = ranks.sharded, ranks.timeout
        self._members, self._streams = members, streams
        self._me = dist.get_rank()
        self._store = dist.distributed_c10d._get_default_store()
        self._base = "easycache/" + "-".join(map(str, members))
        self._evaluation, self._left = 0, False
        self._run = self._assemble(f"{terms}, sharded={ranks.sharded}")

    def _assemble(self, terms: str) -> str:
        """The run's name. The first member makes it up, and tells those who have said hello.

        A rank may have missed runs that others began, or have said hello to one that came to nothing. So nobody counts
        runs, and a hello is answered once.
        """
        ticket, hello = uuid.uuid4().hex, f"{self._base}/hello"
        self._ask("set", f"{hello}/{self._me}", f"{ticket} {terms}")
        try:
            if self._me == self._members[0]:
                self._preside(hello, run=ticket)
            # The first member may come as late as any, and then wait for the others.
            answer = json.loads(self._take(f"{self._base}/{ticket}", self._members[:1], 2 * self._timeout)[0])
        except BaseException:
            self._ask("delete_key", f"{hello}/{self._me}")
            raise
        if answer["late"]:
            raise RankLost(answer["complaint"], answer["late"])
        if answer["complaint"]:
            raise RanksDiffer(answer["complaint"])
        return answer["run"]

    def _preside(self, hello: str, run: str) -> None:
        late, complaint = (), ""
        try:
            self._await(hello, self._members, self._timeout)
        except RankLost as lost:
            late, complaint = lost.ranks, str(lost)
        came = [rank for rank in self._members if rank not in late]
        hellos = [word.decode().split(" ", 1) for word in self._take(hello, came, self._timeout)]
        answer = {
            "run": run,
            "late": late,
            "complaint": complaint or _differences(came, [theirs for _, theirs in hellos]),
        }
        for ticket, _ in hellos:
            self._ask("set", f"{self._base}/{ticket}/{self._members[0]}", json.dumps(answer))

    def agree(self, word: Word, along: Sequence[torch.Tensor], device: torch.device) -> tuple[Word, list[float]]:
        """(what all ranks say, as numbers and tensors on the host; along, on the host).

        Norms have an entry a stream where the latent is sharded, and else one a rank and stream. Waits for the device
        once, whatever there is to say.

        Raises RankLost and RanksDiffer.
        """
        row = [word.step, word.lost, word.force, word.changed, word.healthy]
        row += [word.seen is not None, word.seen is not None and word.seen.output_change is not None]
        row += self._each_stream(word.elements)
        *norms, movements = _parts(word.seen, Seen)
        for measure in (word.input_change, *_parts(word.place, Place), *norms, *_parts(movements, Movements)):
            row += self._each_stream(measure)
        numbers = read([*row, *along], device)
        return self._together(word, self._exchange(numbers[: len(row)])), numbers[len(row) :]

    def _each_stream(self, values: Sequence | torch.Tensor | None) -> list:
        """An entry a stream; one for all of them is repeated."""
        values = [torch.nan] if values is None else list(values.flatten() if torch.is_tensor(values) else values)
        return values if len(values) == self._streams else values * self._streams

    def _together(self, word: Word, rows: torch.Tensor) -> Word:
        """All ranks' rows as one word; word: this rank's."""
        step, lost, force, changed, healthy, seen, seen_before = rows[:, :FLAGS].T.tolist()
        if len(set(step)) > 1:
            raise RanksDiffer(
                f"{_named(self._members)} are at steps {[int(s) for s in step]}: they do not sample the same"
            )
        measures = rows[:, FLAGS:].reshape(len(rows), -1, self._streams)
        elements, measures = measures[:, :1], measures[:, 1:]
        known = torch.where(elements > 0, measures, 0)  # there is no mean of nothing
        mean = ((known * elements).sum(0) / elements.sum(0)).float()
        norms = mean if self._sharded else measures.transpose(0, 1).flatten(1).float()
        share = elements.sum(2) / elements.sum()
        whole = (known[:, :, 0] * share).sum(0).float()  # of what has no streams

        input_change, places, movements = norms[0], 1 + len(Place._fields), len(norms) - len(Movements._fields)
        agreed = None
        if word.seen is not None and all(seen):
            agreed = Seen(*norms[places:movements], Movements(*whole[movements:]))
            agreed = agreed if all(seen_before) else Seen(agreed.output_norm)
        return Word(
            step=word.step,
            lost=any(lost),
            force=any(force),
            changed=any(changed),
            healthy=all(healthy),
            elements=word.elements,
            input_change=None if word.input_change is None else input_change,
            place=None if word.place is None else Place(*norms[1:places]),
            seen=agreed,
        )

    def _exchange(self, row: Sequence[float]) -> torch.Tensor:
        """All members' rows, (ranks, entries) in double precision."""
        if self._left:
            raise RuntimeError("this run's controller was released")
        here, before = f"{self._run}/{self._evaluation}", f"{self._run}/{self._evaluation - 1}"
        self._ask("set", f"{here}/{self._me}", b"+" + struct.pack(f"<{len(row)}d", *row))
        self._evaluation += 1  # a farewell goes where the others look next
        words = self._await(here, self._members, self._timeout)
        gone = {rank: word[1:].decode() for rank, word in zip(self._members, words, strict=True) if word[:1] == b"-"}
        if gone:
            reasons = "; ".join(f"rank {rank}: {reason}" for rank, reason in gone.items())
            raise RankLost(f"left before evaluation {self._evaluation}, so no rank can go on: {reasons}", gone)
        self._ask("delete_key", f"{before}/{self._me}")  # who is here has read what was there
        return torch.tensor([struct.unpack(f"<{len(row)}d", word[1:]) for word in words], dtype=torch.float64)

    def _await(self, folder: str, ranks: Sequence[int], seconds: float) -> list[bytes]:
        """What these ranks have laid down in the folder."""
        keys, nap, deadline = [f"{folder}/{rank}" for rank in ranks], 1e-4, time.monotonic() + seconds
        while not self._ask("check", keys):
            if time.monotonic() > deadline:
                late = [rank for rank, key in zip(ranks, keys, strict=True) if not self._ask("check", [key])]
                raise RankLost(
                    f"did not come to evaluation {self._evaluation} within {seconds:g} s: {_named(late)}. Processes "
                    "that do not sample together must not share a group (easycache_core.Ranks)",
                    late,
                )
            time.sleep(nap)
            nap = min(1.5 * nap, LONGEST_NAP)
        many = self._store.has_extended_api()  # a FileStore has not
        return self._ask("multi_get", keys) if many else [self._ask("get", key) for key in keys]

    def _ask(self, what: str, *args):
        """A method of the store."""
        try:
            return getattr(self._store, what)(*args)
        except RuntimeError as error:
            raise RankLost("torch.distributed's store does not answer: has the process that keeps it ended?") from error

    def _take(self, folder: str, ranks: Sequence[int], seconds: float) -> list[bytes]:
        words = self._await(folder, ranks, seconds)
        for rank in ranks:
            self._ask("delete_key", f"{folder}/{rank}")
        return words

    def leave(self, reason: str) -> None:
        """Say farewell, and wait for nobody. The last one to leave clears up."""
        if self._left:
            return
        self._left = True
        try:
            self._store.set(f"{self._run}/{self._evaluation}/{self._me}", b"-" + reason.encode(errors="replace"))
            if self._store.add(f"{self._run}/left", 1) == len(self._members):
                for evaluation in (self._evaluation - 1, self._evaluation):
                    for rank in self._members:
                        self._store.delete_key(f"{self._run}/{evaluation}/{rank}")
                self._store.delete_key(f"{self._run}/left")
        except RuntimeError:
            pass  # where there is no store any more, the others have found out


def _parts(measured: Place | Seen | Movements | None, kind: type) -> Sequence[torch.Tensor | None]:
    return [None] * len(kind._fields) if measured is None else measured


def _named(ranks: Sequence[int]) -> str:
    return f"rank{'s' * (len(ranks) > 1)} {', '.join(map(str, ranks))}"


def _differences(members: Sequence[int], terms: Sequence[str]) -> str:
    """A sentence if not all terms are the first one's."""
    for rank, theirs in zip(members, terms, strict=True):
        if theirs != terms[0]:
            return f"rank {rank} has {theirs}, but rank {members[0]} has {terms[0]}"
    return ""
