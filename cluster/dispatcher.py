"""One campaign: a step's shards from the first handed out to the last counted, whatever becomes of the workers.

Where the crew (who is there) meets the ledger (what is to be done). Work is tagged (step, block, attempt), and each
shard counted once, whatever is lost, answered twice or answered late. A worker with empty hands takes over what another
is overdue with, and the first answer counts.
"""

import math
import time
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any, NamedTuple

import ray
from ray.exceptions import ActorUnavailableError, ObjectLostError, RayError, RayTaskError

from cluster.actor import Answer, Sums, Ticket
from cluster.events import Events
from cluster.work_queue import Ledger
from cluster.worker_pool import GONE, IN_FLIGHT, Crew, Seat, how_it_died, raised
from metatrain.training.profiling import Meter
from metatrain.training.tree_sum import Block
from metatrain.types import Job, Shard, TaskFailed, WorkersLost

_TURN_S = 0.1
"""How often it is looked whether somebody is overdue while nothing comes in."""
_OVERDUE, _OVERDUE_S = 3.0, 0.25
"""An answer is overdue after so many times what it took lately, and so many seconds more."""
_SILENT = 10
"""From so many times that on, it is worth a word."""
_LATELY = 101
_DEADLY = 6
"""Shards whose workers died so often, one after another, are what kills them."""


class Arrival(NamedTuple):
    """An answer that counts."""

    block: Block
    tasks: int
    pid: int
    found: Sums | None
    """None where it stayed with who found it: on `node`, as `apart`."""
    node: str
    apart: Any


class Flight(NamedTuple):
    """A call that has not been answered."""

    seat: Seat
    campaign: "Campaign"
    number: int
    ticket: Ticket
    shards: int
    since: float
    apart: Any


@dataclass
class Pace:
    """How long shards take, by the latest answers."""

    usual: float = math.inf
    """Seconds a shard takes, the median; without end until there has been an answer."""
    _lately: deque[float] = field(default_factory=lambda: deque(maxlen=_LATELY))

    def took(self, seconds: float) -> None:
        """A shard took so long."""
        self._lately.append(seconds)
        self.usual = median(self._lately)


@dataclass
class Desk:
    """What outlives a campaign: the workers, calls that have not been answered yet, and how long answers take."""

    crew: Crew
    events: Events
    meter: Meter
    flights: dict[Any, Flight] = field(default_factory=dict)
    paces: dict[tuple[str, str], "Pace"] = field(default_factory=dict)
    """By what is done with a shard: its kind, and by which learner."""


class Campaign:
    """`shards` computed at the parameters of `vector`, in blocks of at most `largest`.

    apart: what is found travels by itself, and stays where it is until somebody asks for it.
    """

    def __init__(self, desk: Desk, job: Job, vector: Any, shards: Sequence[Shard], largest: int, apart: bool) -> None:
        assert [shard.number for shard in shards] == list(range(len(shards))), "shards are numbered from 0"
        self._desk, self._crew = desk, desk.crew
        self._job, self._vector, self._shards, self._apart = job, vector, shards, apart
        answering = [seat.number for seat in desk.crew.here() if seat.silent_since is None]
        self._ledger = Ledger(len(shards), answering, largest)
        self._pace = desk.paces.setdefault((job.kind, job.learner), Pace())
        self._deaths: Counter[int] = Counter()
        self._heard = 0.0

    @property
    def done(self) -> bool:
        """Whether every shard has been counted."""
        return self._ledger.done

    def arrivals(self) -> Iterator[Arrival]:
        """Answers that make up all shards, in order of arrival. WorkersLost: there is nobody left to ask."""
        self._heard = time.monotonic()
        yield from self._met(self._ready(0.0))  # what came while nobody looked, before anyone is called silent
        while not self.done:
            self._crew.tend()
            self._desk.events.tell()
            idle = self._hand_out()
            came = self._ready(_TURN_S)
            yield from self._met(came)
            if idle or not came:
                self._note_silence()
                self._take_over()
            if time.monotonic() - self._heard > self._crew.settings.deadline:
                raise WorkersLost(self._crew.lack())

    def _met(self, references: Sequence[Any]) -> Iterator[Arrival]:
        """Those of what has come in that are answers that count."""
        for reference in references:
            if reference not in self._desk.flights:
                self._started(reference)
            elif (arrival := self._landed(reference)) is not None:
                yield arrival

    def lost(self, arrival: Arrival) -> None:
        """What had arrived apart was lost with its node: it is to be done again."""
        self._desk.events.count("retries")
        self._ledger.uncount(arrival.block)

    def _ready(self, seconds: float) -> list[Any]:
        """What has come in; waits so long for something."""
        references = [*self._desk.flights, *self._crew.awaited()]
        with self._desk.meter.part("wait"):
            if not references:
                time.sleep(seconds)
                return []
            ready, rest = ray.wait(references, timeout=seconds, fetch_local=False)
            if ready and rest:
                ready += ray.wait(rest, num_returns=len(rest), timeout=0, fetch_local=False)[0]
        return list(ready)

    def _started(self, reference: Any) -> None:
        seat = self._crew.awaited().get(reference)
        if seat is not None:
            self._crew.started(seat)
            self._heard = time.monotonic()

    def _hand_out(self) -> bool:
        """Fills everybody's hands, the emptiest first; whether there was too little for somebody."""
        now, late = time.monotonic(), self._owing()
        for _ in range(IN_FLIGHT):
            for seat in sorted(self._crew.here(), key=lambda seat: seat.calls):
                if seat.room(late[seat.number], now) > 0:
                    taken = self._ledger.take(seat.number, now, most=1 if late[seat.number] else None)
                    if taken is None:
                        return True
                    self._call(seat, *taken)
        return False

    def _take_over(self) -> None:
        """Blocks that are overdue, for those with empty hands."""
        now = time.monotonic()
        late, owing = self._overdue(now), self._owing()
        for seat in self._crew.here() if late else []:
            if seat.calls == owing[seat.number] and seat.room(owing[seat.number], now) > 0:
                taken = self._ledger.take_over(seat.number, late, now)
                if taken is not None:
                    self._desk.events.count("stragglers")
                    self._call(seat, *taken)

    def _call(self, seat: Seat, number: int, block: Block) -> None:
        ticket = Ticket(self._job.step, block, number)
        members = [self._shards[leaf] for leaf in block.leaves(len(self._shards))]
        if self._apart:
            method = seat.actor.compute_apart.options(num_returns=2)
            reference, found = method.remote(ticket, self._job, self._vector, members)
        else:
            reference, found = seat.actor.compute.remote(ticket, self._job, self._vector, members), None
        seat.calls += 1
        seat.called = time.monotonic()
        self._desk.flights[reference] = Flight(seat, self, number, ticket, len(members), time.monotonic(), found)

    def _owing(self) -> Counter[int]:
        """How many answers each seat owes that are overdue, those to earlier steps included."""
        now, flights = time.monotonic(), self._desk.flights.values()
        return Counter(f.seat.number for f in flights if now - f.since > f.campaign.patience(f.shards))

    def patience(self, shards: int) -> float:
        """Seconds after which an answer for so many shards is overdue."""
        return _OVERDUE * self._pace.usual * IN_FLIGHT * shards + _OVERDUE_S

    def _overdue(self, now: float) -> set[int]:
        """The calls of this step whose answer is overdue."""
        return {
            number
            for number, call in self._ledger.waiting()
            if now - call.since > self.patience(len(call.block.leaves(len(self._shards))))
        }

    def _note_silence(self) -> None:
        """Those who owe an answer since long, be it to an earlier step: others did its shards meanwhile."""
        now = time.monotonic()
        for flight in self._desk.flights.values():
            silence = now - max(flight.since, flight.seat.heard)
            if silence > _SILENT * flight.campaign.patience(flight.shards):
                self._crew.silent(flight.seat, f"has not answered for {silence:.1f} s")

    def _landed(self, reference: Any) -> Arrival | None:
        """An answer that counts, or None: it is late, came to nothing, or somebody else was first."""
        flight = self._desk.flights.pop(reference)
        try:
            answer: Answer = ray.get(reference)
        except (ActorUnavailableError, ObjectLostError):  # lost with its node, where an answer waits in its store
            self._crew.unreached(flight.seat)
            self._give_back(flight)
            return None
        except RayTaskError as error:  # the actor lives: it is the computation that fails, and would again
            self._crew.answered(flight.seat)
            if flight.campaign is not self:
                return None
            raise raised(error) from error
        except GONE as error:
            self._bury(flight, error)
            return None
        except RayError as error:  # a full disk or object store, or Ray itself
            raise WorkersLost(
                f"Ray can go on no more ({' '.join(str(error).split())[:200]}): see `ray status`"
            ) from error
        self._heard = time.monotonic()
        self._crew.answered(flight.seat)
        assert answer.ticket == flight.ticket, "an answer to another call"
        if flight.campaign is not self or not self._ledger.count(flight.number):
            return None
        members = [self._shards[leaf] for leaf in flight.ticket.block.leaves(len(self._shards))]
        self._pace.took(answer.seconds / len(members))
        self._desk.events.spent(answer.parts)
        tasks = sum(len(shard.indices) for shard in members)
        return Arrival(flight.ticket.block, tasks, answer.pid, answer.found, answer.node, flight.apart)

    def _give_back(self, flight: Flight) -> None:
        if flight.campaign is self and self._ledger.lose(flight.number):
            self._desk.events.count("retries")

    def _bury(self, flight: Flight, error: RayError) -> None:
        """The worker is gone: all that it had in hands goes to others at once. TaskFailed: its tasks kill workers."""
        flights, seat = self._desk.flights, flight.seat
        by_itself = seat.number in self._crew.seats and not getattr(error, "preempted", False)
        if seat.number in self._crew.seats:
            self._crew.replace(seat, how_it_died(error))
        forgotten = [reference for reference, other in flights.items() if other.seat is seat]
        for lost in [flight, *(flights.pop(reference) for reference in forgotten)]:
            self._give_back(lost)
        if flight.campaign is self and by_itself:
            self._count_deaths(flight.ticket.block)

    def _count_deaths(self, block: Block) -> None:
        leaves = block.leaves(len(self._shards))
        self._deaths.update(leaves)
        deadly = [index for leaf in leaves if self._deaths[leaf] >= _DEADLY for index in self._shards[leaf].indices]
        if deadly:
            raise TaskFailed(
                f"tasks {deadly[0]} to {deadly[-1]} at step {self._job.step}: {_DEADLY} workers died of them one after "
                "another, most likely for want of memory: lower executor.shard_size"
            )
