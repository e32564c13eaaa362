"""A component as data: what a node, the gateways, the docs and the debugger need to know of one kind of aggregate.

`aetherscale.components` lists them, and that is all the wiring there is. docs/adding-a-component.md walks through one.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, TypeVar

from aetherscale.kernel.calls import Call
from aetherscale.kernel.decider import Decider
from aetherscale.kernel.findings import Finding
from aetherscale.kernel.identity import Identity
from aetherscale.kernel.lifecycle import Lifecycle
from aetherscale.kernel.measures import Measure
from aetherscale.kernel.messages import Event
from aetherscale.kernel.registry import Aggregate, Kind, Registry
from aetherscale.kernel.replies import Chunk
from aetherscale.kernel.reservations import Holding, User
from aetherscale.kernel.wire import Message
from aetherscale.settings import Settings

S = TypeVar("S")
M = TypeVar("M")
S_contra = TypeVar("S_contra", contravariant=True)
M_co = TypeVar("M_co", covariant=True)


class Effect(Protocol):
    """The fields of an effect that the runtime reads; the rest is between the component and its driver.

    One that has a field `tenant` is given that of its aggregate before it is performed.
    """

    @property
    def key(self) -> str:
        """Names it among the effects of its aggregate."""
        ...

    @property
    def not_before_us(self) -> int:
        """When it may begin, in microseconds since 1970; 0 for at once."""
        ...

    @property
    def deadline_s(self) -> float:
        """How long it may take."""
        ...


Progress = Callable[..., None]
"""`progress(step, **fields)` reports the progress of an effect to the callers who wait for its aggregate. Nothing is
kept.
"""

Report = Callable[[M], Awaitable[Any]]
"""Takes an observation of the host, which names its aggregate in the field `<kind>_id`, into the aggregate's mailbox.

What is returned is done when the observation has been decided on.
"""


class Driver(Protocol[S_contra, M_co]):
    """The port through which a component touches the host. Every component has a real one and a simulated one."""

    async def start(self, report: Report[Any]) -> None:
        """Begin to report observations. Called once, before anything else. Raises OSError."""
        ...

    async def perform(self, effect: Any, progress: Progress) -> M_co:
        """Make the effect true and say so; what the host refuses is an answer, never an exception."""
        ...

    async def reconcile(self, expected: Mapping[str, S_contra]) -> None:
        """Compare the host with the states that the log has, and report what differs: adopted, lost, orphaned.

        `expected` follows the log while this runs. Returns when what was found has been decided on.
        """
        ...

    async def close(self) -> None:
        """Report no more. What runs on the host runs on."""
        ...


class World(Protocol):
    """All aggregates of the node as of now. What a command is decided on beyond its own aggregate is looked up here.

    The versions of what a command looks at are noted: its append is conditional on them, so that the decision is made
    anew where one has changed.
    """

    @property
    def node(self) -> str:
        """The name of the node."""
        ...

    def find(self, kind: str, tenant: str, reference: str) -> Aggregate[Any]:
        """The aggregate that a name or id means; a deleted one is found by its id alone.

        Raises `Refused` (not found).
        """
        ...

    def referred(self, kind: str, options: Any, call: Call) -> Aggregate[Any]:
        """The aggregate that a call is about. Raises `Refused`: bad request where the options name none, not found."""
        ...

    def named(self, kind: str, tenant: str, name: str) -> Aggregate[Any] | None:
        """The aggregate that has the name now; a key of the node, where `tenant` is `NO_TENANT`.

        No version is noted: a name is reserved in the append itself.
        """
        ...

    def require_free(self, kind: str, tenant: str, name: str, bearer: str) -> None:
        """Refuse a name that another aggregate than `bearer` has now. No version is noted, as in `named`.

        Raises `Refused` (conflict).
        """
        ...

    def view(self, kind: str, tenant: str, reference: str) -> Any:
        """How an aggregate looks from outside, which is all that another component knows of it. Raises `Refused`."""
        ...

    def of_tenant(self, kind: str, tenant: str) -> Sequence[Aggregate[Any]]:
        """All aggregates of a tenant that are not deleted, by name. No version is noted."""
        ...

    def users_of(self, kind: str, aggregate_id: str) -> Sequence[User]:
        """The aggregates that use this one, by name."""
        ...

    def port(self, name: str) -> Any:
        """The object that a component's driver offers under this name: see `Component.offers`.

        For what a decision needs to know of the host. What is found is recorded in the event; nothing is noted.
        """
        ...

    def fields(self, kind: str, aggregate: Aggregate[Any]) -> Mapping[str, Any]:
        """An aggregate in a result: `{"<kind>-id": …, "<kind>": the view}`."""
        ...


class Host(Protocol):
    """The things that a driver may ask for when it is opened."""

    @property
    def settings(self) -> Settings:
        """The settings of the node; its state directory is among them."""
        ...

    @property
    def boot_id(self) -> str:
        """Names the time since the host was started last."""
        ...

    def port(self, name: str) -> Any:
        """The object that another component's driver offers under this name: see `Component.offers`."""
        ...


@dataclass(frozen=True, slots=True)
class Command(Generic[S, M]):
    """A task that changes something; its docs are the docstring of its options."""

    options: type[Message]
    prepare: Callable[[Any, Call, str, World], M]
    """The command, made in the mailbox of its aggregate (whose id is given): names have become ids, defaults are filled
    in. May raise `Refused`."""
    is_done: Callable[[S, Any], bool]
    """Whether the task with these options has come to its end in a state; raises `Refused` for a bad end, and where
    another command has undone it before. It is asked of each state that follows the command, in their order, and is a
    function of nothing else, so that a repeat reads the same end from the log."""
    creates: bool = False
    """Whether it makes an aggregate, whose id is derived from the command's; otherwise the options refer to one."""
    frees: bool = False
    """Whether it makes room, and so may use the reserve when the disk is full."""
    under: str = ""
    """The component under whose name callers ask for it, where that is not its own."""
    beforehand: Callable[[Any, str, World], Awaitable[None] | None] | None = None
    """What has to be on the host before the events are in the log, since they cannot hold it: a secret of the options,
    which is kept for the aggregate of this id; None where the options have none. Awaited once the command could be
    decided; it is then decided anew, and may be refused after all. An ensure; may raise `Refused`. What was kept for
    nothing is for the driver to remove.
    """


@dataclass(frozen=True, slots=True)
class Query:
    """A task that changes nothing: `answer(service, options, call)` yields chunks, the final one included."""

    options: type[Message]
    answer: Callable[[Any, Any, Call], AsyncIterator[Chunk]]
    under: str = ""
    """As in `Command`."""
    acts: bool = False
    """Whether it does something in a guest, though no event tells of it: nothing that may be asked again at will."""
    streams: bool = False
    """Whether its answer comes bit by bit, and is to be read as it comes."""


@dataclass(frozen=True, slots=True)
class Listing(Generic[S]):
    """The tasks that every component has: all aggregates of a tenant, and one of them."""

    list_options: type[Message]
    """Has at least `all`."""
    show_options: type[Message]
    matches: Callable[[Any, S], bool] = lambda options, state: True
    """Whether the options of a list ask for an aggregate in this state, beyond that it is not deleted."""


def _no_notes(settings: Settings) -> Mapping[str, str]:
    return {}


def _needs_nothing(settings: Settings) -> Iterator[Finding]:
    yield from ()


async def _no_measures(registry: Registry[Any], driver: Any) -> Sequence[Measure]:
    return ()


@dataclass(frozen=True, slots=True)
class Component(Generic[S, M]):
    """One kind of aggregate, complete. Data and functions; drivers are imported when they are opened."""

    identity: Identity
    kind: Kind[S]
    """The fold of an aggregate, and its view. `kind.name` is in streams, ids and `obj` subjects."""
    decider: Decider[S, M, Any, Any]
    holds: Callable[[S], Sequence[Holding]]
    """The holdings of an aggregate in this state: its name, and the objects that it uses. A change of them is reserved
    or released in the append of the event.
    """
    announce: Callable[[S, Any], Chunk | None]
    """The status that waiting callers get for an event."""
    listing: Listing[S]
    commands: Mapping[str, Command[S, M]]
    open_driver: Callable[[Host], Driver[S, M]]
    open_simulated: Callable[[Host], Driver[S, M]]
    """The driver on a host in memory, for simulations and tests."""
    open_service: Callable[[World, Any], Any] = lambda world, driver: world
    """Makes the object that answers queries, from the world and the driver: one for each process of the node."""
    queries: Mapping[str, Query] = field(default_factory=dict)
    concurrency: Mapping[type[Any], int] = field(default_factory=dict)
    """How many effects of a type may be performed at once; their deadline does not run while they wait."""
    ends: Mapping[type[Event], Callable[[S, Any], bool]] = field(default_factory=dict)
    """By the event that a command begins with, whether the command has come to its end in a state; raises `Refused` for
    a bad end. As `Command.is_done`, where there is nothing but the log: it is given that event instead of the options.
    Of an event that is not here it is: once nothing is pending.
    """
    suspicious: tuple[type[Event], ...] = ()
    """Events after which the host may not be as the log has it, so that the two are compared."""
    offers: Mapping[str, Callable[[Any], Any]] = field(default_factory=dict)
    """Ports for other components' drivers, made from this one's; their protocols are in the component's `ports.py`."""
    counts: Mapping[str, Callable[[S], bool]] = field(default_factory=dict)
    """The counts in a heartbeat, of the aggregates that are not deleted."""
    needs: Callable[[Settings], Iterator[Finding]] = _needs_nothing
    """The requirements of a host, for `doctor`."""
    notes: Callable[[Settings], Mapping[str, str]] = _no_notes
    """Notices for the operator who starts a node."""
    measures: Callable[[Registry[S], Any], Awaitable[Sequence[Measure]]] = _no_measures
    """The figures of its aggregates and of its driver at this moment. What cannot be told is left out."""
    lifecycle: Lifecycle | None = None
    """The phases of an aggregate, for `docs/states.md`."""

    @property
    def name(self) -> str:
        """The name of the component."""
        return self.identity.component

    def tasks(self) -> Mapping[str, type[Message]]:
        """The options of every task by its name: commands, then queries."""
        return {
            **{name: command.options for name, command in self.commands.items()},
            self.identity.list_task: self.listing.list_options,
            self.identity.show_task: self.listing.show_options,
            **{name: query.options for name, query in self.queries.items()},
        }

    def asked_under(self, task: str) -> str:
        """The name of the component under which callers ask for a task."""
        described: Command[S, M] | Query | None = self.commands.get(task) or self.queries.get(task)
        return (described.under if described else "") or self.name

    def reference_of(self, options: Any, call: Call) -> str:
        """The name or id of the aggregate that a call is about."""
        reference: str = call.object_id or getattr(options, self.identity.reference.replace("-", "_"))
        return reference
