"""Tables of classes by name, which users add to with a decorator.

A table is a value like any other: `PRUNERS` and `CRITERIA` are those that are looked at where nobody gives
another, and nothing is put into them by an import. `register(name)` puts a class in and gives it back, so
that the decorator form of Neural Compressor stays what it is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TypeVar

from onnxprune.calibrate.checks import did_you_mean
from onnxprune.errors import UsageError

T = TypeVar("T", bound=type)


class ClassTable(Mapping[str, type]):
    """Classes by name. `table | other` is a new one in which `other` wins.

    Parameters
    ----------
    what
        What the classes are, for messages.
    classes
        To begin with.

    Examples
    --------
    >>> table = ClassTable("criterion", {"int": int})
    >>> @table.register("mine")
    ... class Mine: ...
    >>> sorted(table)
    ['int', 'mine']
    """

    def __init__(self, what: str, classes: Mapping[str, type] | None = None) -> None:
        self.what = what
        self._classes = dict(classes or {})

    def __getitem__(self, name: str) -> type:
        return self._classes[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._classes)

    def __len__(self) -> int:
        return len(self._classes)

    def __or__(self, other: Mapping[str, type]) -> ClassTable:
        return ClassTable(self.what, {**self._classes, **other})

    def register(self, name: str) -> Callable[[T], T]:
        """A decorator that puts a class into this table under a name, and gives the class back.

        Raises
        ------
        UsageError
            Another class has the name already.
        """

        def put(cls: T) -> T:
            there = self._classes.get(name)
            if there is not None and there is not cls and there.__qualname__ != cls.__qualname__:
                raise UsageError(
                    f"there is a {self.what} {name!r} already: {there.__qualname__}",
                    "Take another name, or a table of your own: ClassTable(...) | {...}.",
                )
            self._classes[name] = cls
            return cls

        return put

    def find(self, name: str) -> type:
        """The class of a name.

        Raises
        ------
        UsageError
            There is none.
        """
        if name not in self._classes:
            raise UsageError(
                f"there is no {self.what} {name!r}{did_you_mean(name, self._classes)}",
                f"Known: {', '.join(sorted(self._classes))}.",
            )
        return self._classes[name]
