"""The drivers of a node, opened when they are asked for, so that one may be given a port that another one offers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from aetherscale.runtime.component import Component, Driver, Host
from aetherscale.settings import Settings

DriverOf = Callable[[Component[Any, Any]], Driver[Any, Any]]
OpenDriver = Callable[[Component[Any, Any], Host], Driver[Any, Any]]


def offered(components: Iterable[Component[Any, Any]], name: str, driver_of: DriverOf) -> Any:
    """The object that the driver of one of these components offers under a name."""
    [component] = (each for each in components if name in each.offers)
    return component.offers[name](driver_of(component))


class Drivers:
    """The drivers of components. It is the `Host` that each of them is opened on."""

    def __init__(
        self, components: Sequence[Component[Any, Any]], settings: Settings, boot_id: str, open_driver: OpenDriver
    ) -> None:
        self.settings = settings
        self.boot_id = boot_id
        self._components = components
        self._open = open_driver
        self._opened: dict[str, Driver[Any, Any]] = {}

    def all(self) -> Mapping[str, Driver[Any, Any]]:
        """Every driver, by the name of its component."""
        return {component.name: self._driver(component) for component in self._components}

    def port(self, name: str) -> Any:
        """As in `Host`."""
        return offered(self._components, name, self._driver)

    def _driver(self, component: Component[Any, Any]) -> Driver[Any, Any]:
        if component.name not in self._opened:
            self._opened[component.name] = self._open(component, self)
        return self._opened[component.name]
