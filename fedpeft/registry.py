"""Extension points: a name in the settings, and the object behind it.

What the distribution ships is named in `fedpeft.plugins`; other packages add to it by an entry point in the
group ``fedpeft.<kind>``. Nothing is imported before it is asked for by name. Only code that is installed on
this machine can be reached: a message holds names, never code, and a name that is not here is refused.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Generic, TypeVar

from fedpeft.errors import FedPeftError

T = TypeVar("T")


@cache
def _installed(group: str) -> tuple[EntryPoint, ...]:
    """Entry points of a group; read once per process."""
    return tuple(sorted(entry_points(group=group), key=lambda point: point.name))


def _load(place: str) -> Any:
    """The object at ``module:attribute``."""
    module, _, attribute = place.partition(":")
    return getattr(import_module(module), attribute)


def nearest(noun: str, name: str, names: Sequence[str]) -> str:
    """What to write in place of an unknown name."""
    near = difflib.get_close_matches(name, names, 1, 0.6)
    return (f"the nearest {noun} is {near[0]!r}; " if near else "") + f"there are {', '.join(names)}"


@dataclass(frozen=True)
class Registry(Generic[T]):
    """Objects of one kind by name: ``name in registry``, ``registry[name]``, and all names by iteration.

    A name belongs to one object: a plug-in that bears the name of another, or of what is shipped, is refused
    and never replaces it.

    Attributes:
        kind: of objects, in the plural; the entry-point group is ``fedpeft.<kind>``.
        noun: what a message calls one of them.
        error: raised for unknown names, and for plug-ins that cannot be used.
        expects: ``module:attribute`` of the class that every object is an instance or a subclass of.
        shipped: name to ``module:attribute``.
        problem: what is wrong with an object of another package beside the others of other packages, if
            anything is.
    """

    kind: str
    noun: str
    error: type[FedPeftError]
    expects: str
    shipped: Mapping[str, str]
    problem: Callable[[T, Mapping[str, T]], str | None] | None = None
    _objects: dict[str, T] = field(default_factory=dict[str, T], init=False, repr=False, compare=False)
    _registered: dict[str, T] = field(default_factory=dict[str, T], init=False, repr=False, compare=False)

    def __iter__(self) -> Iterator[str]:
        """Names: those shipped in their order, then those of other packages."""
        return iter((*self.shipped, *self._points(), *self._registered))

    def __contains__(self, name: object) -> bool:
        return name in self.shipped or name in self._registered or name in self._points()

    def __getitem__(self, name: str) -> T:
        """The object of a name, imported at its first use.

        Raises:
            FedPeftError: of class ``error``: an unknown name (the nearest is named), or a plug-in that cannot
                be imported, is of another kind, or claims what another has.
        """
        if name not in self._objects:
            if name in self.shipped:
                self._objects[name] = _load(self.shipped[name])
            elif name in self:
                self._objects[name] = self._foreign(name)
            else:
                raise self.error(f"unknown {self.noun} {name!r}; {nearest(self.noun, name, list(self))}")
        return self._objects[name]

    def items(self) -> Iterator[tuple[str, T]]:
        """Every name and its object; imports them all."""
        return ((name, self[name]) for name in self)

    def register(self, name: str, item: T) -> None:
        """Add an object in this process alone, as a notebook or a test does; packages use entry points.

        Raises:
            FedPeftError: as `__getitem__`, and for a name that is in use.
        """
        if name in self:
            raise self.error(f"there is a {self.noun} {name!r} already; choose another name")
        self._check(name, item, "the one registered", dict(self._others()))
        self._registered[name] = self._objects[name] = item

    def forget(self, name: str) -> None:
        """Take away what `register` added."""
        del self._registered[name], self._objects[name]

    def _points(self) -> dict[str, EntryPoint]:
        """Entry points of other packages by name; one that takes another's name is refused."""
        points: dict[str, EntryPoint] = {}
        for point in _installed(f"fedpeft.{self.kind}"):
            if point.name in self.shipped or point.name in points:
                raise self.error(
                    f"{_package(point)} adds a {self.noun} {point.name!r}, but there is one already; "
                    "uninstall it or change its name"
                )
            points[point.name] = point
        return points

    def _foreign(self, name: str) -> T:
        """The plug-in of a name, checked beside all others where they must differ in more than names."""
        item = self._imported(name)
        others = {other: plugin for other, plugin in self._others() if other != name} if self.problem else {}
        self._check(name, item, _package(self._points()[name]), others)
        return item

    def _others(self) -> Iterator[tuple[str, T]]:
        if self.problem is not None:
            yield from self._registered.items()
            yield from ((name, self._imported(name)) for name in self._points())

    def _imported(self, name: str) -> T:
        point = self._points()[name]
        try:
            return point.load()
        except Exception as error:  # whatever a stranger's module raises while it is imported
            raise self.error(
                f"the {self.noun} {name!r} of {_package(point)} cannot be imported: "
                f"{type(error).__name__}: {error}"
            ) from error

    def _check(self, name: str, item: T, source: str, others: Mapping[str, T]) -> None:
        expected = _load(self.expects)
        if not (issubclass(item, expected) if isinstance(item, type) else isinstance(item, expected)):
            raise self.error(f"the {self.noun} {name!r} of {source} is no {expected.__name__}")
        if self.problem is not None and (problem := self.problem(item, others)):
            raise self.error(f"the {self.noun} {name!r} of {source} {problem}")


def _package(point: EntryPoint) -> str:
    return f"package {point.dist.name!r}" if point.dist else "a package"
