"""All aggregates of a node, looked up by name and id: what commands are decided on, and what lists are made of."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from typing import Any, Final

from aetherscale.kernel.calls import Call
from aetherscale.kernel.errors import Reason, Refused, Task
from aetherscale.kernel.messages import stream_name
from aetherscale.kernel.registry import Aggregate, Registry
from aetherscale.kernel.replies import Chunk, Kept, item, result
from aetherscale.kernel.reservations import Seen, Use, User, Uses, use_stream
from aetherscale.runtime.component import Component, Driver
from aetherscale.runtime.drivers import offered

Registries = Mapping[str, Registry[Any]]
"""The projections of a node by kind, as of the log's head."""


NO_DRIVERS: Final[Mapping[str, Driver[Any, Any]]] = {}


class NodeWorld:
    """`World` on the registries of a node."""

    def __init__(
        self,
        node: str,
        components: Iterable[Component[Any, Any]],
        registries: Registries,
        drivers: Mapping[str, Driver[Any, Any]] = NO_DRIVERS,
    ) -> None:
        self._node = node
        self._components = {component.kind.name: component for component in components}
        self._drivers = drivers
        self._registries = registries
        self._keepers = {key: kind for kind, each in self._components.items() for key in each.kind.names}
        names = [key for each in self._components.values() for key in each.kind.names]
        assert len(self._keepers) == len(names), f"two components reserve keys of one kind: {sorted(names)}"
        self._items: dict[str, Kept] = {}
        """The items of a list, for aggregates that are not deleted, as of the view's `revision`."""
        self._know_unrecorded_uses()

    @property
    def node(self) -> str:
        """As in `World`."""
        return self._node

    def find(self, kind: str, tenant: str, reference: str) -> Aggregate[Any]:
        """As in `World`."""
        names = self._components[kind].identity
        found = self._registries[kind].find(kind, tenant, reference)
        if found is None:
            what = f"no such {names.noun}: {reference!r}"
            raise Refused(Reason.NOT_FOUND, what, field=names.reference, remedy=Task(kind, "list"))
        return found

    def referred(self, kind: str, options: Any, call: Call) -> Aggregate[Any]:
        """As in `World`."""
        component = self._components[kind]
        reference = component.reference_of(options, call)
        if not reference:
            field = component.identity.reference
            raise Refused(
                Reason.BAD_REQUEST, f"{call.component}.{call.task}: the field {field!r} is missing", field=field
            )
        return self.find(kind, call.tenant, reference)

    def named(self, kind: str, tenant: str, name: str) -> Aggregate[Any] | None:
        """As in `World`."""
        return self._registries[self._keepers[kind]].named(kind, tenant, name)

    def require_free(self, kind: str, tenant: str, name: str, bearer: str) -> None:
        """As in `World`. Deletion is a way only for one that nothing uses."""
        found = self.named(kind, tenant, name)
        if found is None or found.id == bearer:
            return
        one, phase = self._components[kind].identity.one, self._item(kind, found)[kind].phase
        other = "take another name"
        raise Refused(
            Reason.CONFLICT,
            f"{one} named {name!r} exists already (it is {phase})",
            field="name",
            remedy=other if self.uses_of(kind, found.id).users else (f"{other}, or: ", Task(kind, "delete", name)),
            details={f"{kind}-id": found.id},
        )

    def view(self, kind: str, tenant: str, reference: str) -> Any:
        """As in `World`."""
        return self._item(kind, self.find(kind, tenant, reference))[kind]

    def of_tenant(self, kind: str, tenant: str) -> Sequence[Aggregate[Any]]:
        """As in `World`."""
        found = [each for each in self._registries[kind].of_tenant(tenant) if each.state.phase != "deleted"]
        return sorted(found, key=lambda each: (each.state.name, each.id))

    def users_of(self, kind: str, aggregate_id: str) -> Sequence[User]:
        """As in `World`."""
        users = self.uses_of(kind, aggregate_id).users
        found = (
            User(kind, self._components[kind].identity.noun, user, self._registries[kind].aggregates[user].state.name)
            for user, kind in users.items()
        )
        return sorted(found, key=lambda user: (user.name, user.id))

    def uses_of(self, kind: str, aggregate_id: str) -> Uses:
        """The uses of an aggregate."""
        return self._registries[kind].uses_of(kind, aggregate_id)

    def port(self, name: str) -> Any:
        """As in `World`."""
        return offered(self._components.values(), name, lambda component: self._drivers[component.name])

    def fields(self, kind: str, aggregate: Aggregate[Any]) -> Mapping[str, Any]:
        """As in `World`."""
        return {f"{kind}-id": aggregate.id, kind: self._item(kind, aggregate)[kind]}

    async def list_all(self, kind: str, options: Any, call: Call) -> AsyncIterator[Chunk]:
        """The answer to `list-<plural>`: an item for each aggregate of the tenant that the options ask for, by name."""
        matches = self._components[kind].listing.matches
        wanted = [
            each
            for each in self._registries[kind].of_tenant(call.tenant)
            if (options.all or each.state.phase != "deleted") and matches(options, each.state)
        ]
        wanted.sort(key=lambda each: (each.state.name, each.id))
        for each in wanted:
            yield self._item(kind, each)
        yield result({"count": len(wanted)})

    async def show(self, kind: str, options: Any, call: Call) -> AsyncIterator[Chunk]:
        """The answer to `<kind>-info`."""
        yield result(self.fields(kind, self.referred(kind, options, call)))

    def _item(self, kind: str, aggregate: Aggregate[Any]) -> Kept:
        known = self._items.get(aggregate.id)
        if known is None or known[kind].revision != aggregate.version:
            view = self._components[kind].kind.view
            shown = view(aggregate.state, self._node, aggregate.version, aggregate.requested_by)
            known = Kept(item({f"{kind}-id": aggregate.id, kind: shown}))
            if aggregate.state.phase == "deleted":
                self._items.pop(aggregate.id, None)
            else:
                self._items[aggregate.id] = known
        return known

    def _know_unrecorded_uses(self) -> None:
        """An old log does not have the uses; they follow from what aggregates are."""
        holders: defaultdict[Use, dict[str, str]] = defaultdict(dict)
        for kind, component in self._components.items():
            for holder, aggregate in self._registries[kind].aggregates.items():
                for held in component.holds(aggregate.state):
                    if isinstance(held, Use):
                        holders[held][holder] = kind
        for used, users in holders.items():
            known = self._registries[used.kind].uses.setdefault(use_stream(used.kind, used.id), Uses()).users
            known.update({holder: kind for holder, kind in users.items() if holder not in known})


class Sight:
    """`World` as one command sees it: notes what the command looks at in other aggregates."""

    def __init__(self, world: NodeWorld, kind: str, target: str) -> None:
        self._world = world
        self._own = stream_name(kind, target)
        self._versions: dict[str, int] = {}

    @property
    def seen(self) -> Sequence[Seen]:
        """The streams that were looked at, with their versions."""
        return [Seen(stream, version) for stream, version in self._versions.items()]

    @property
    def node(self) -> str:
        """As in `World`."""
        return self._world.node

    def find(self, kind: str, tenant: str, reference: str) -> Aggregate[Any]:
        """As in `World`."""
        return self._noted(kind, self._world.find(kind, tenant, reference))

    def referred(self, kind: str, options: Any, call: Call) -> Aggregate[Any]:
        """As in `World`."""
        return self._noted(kind, self._world.referred(kind, options, call))

    def named(self, kind: str, tenant: str, name: str) -> Aggregate[Any] | None:
        """As in `World`."""
        return self._world.named(kind, tenant, name)

    def require_free(self, kind: str, tenant: str, name: str, bearer: str) -> None:
        """As in `World`."""
        self._world.require_free(kind, tenant, name, bearer)

    def view(self, kind: str, tenant: str, reference: str) -> Any:
        """As in `World`."""
        return self.fields(kind, self.find(kind, tenant, reference))[kind]

    def of_tenant(self, kind: str, tenant: str) -> Sequence[Aggregate[Any]]:
        """As in `World`."""
        return self._world.of_tenant(kind, tenant)

    def users_of(self, kind: str, aggregate_id: str) -> Sequence[User]:
        """As in `World`."""
        self._versions[use_stream(kind, aggregate_id)] = self._world.uses_of(kind, aggregate_id).version
        return self._world.users_of(kind, aggregate_id)

    def port(self, name: str) -> Any:
        """As in `World`."""
        return self._world.port(name)

    def fields(self, kind: str, aggregate: Aggregate[Any]) -> Mapping[str, Any]:
        """As in `World`."""
        return self._world.fields(kind, aggregate)

    def _noted(self, kind: str, aggregate: Aggregate[Any]) -> Aggregate[Any]:
        stream = stream_name(kind, aggregate.id)
        if stream != self._own:
            self._versions[stream] = aggregate.version
        return aggregate
