"""Checks of a head's fields, derived from the annotations of the messages. Pure.

A check takes a decoded value, the longest string allowed (characters) and the most entries of a
list or map, and returns the value in the field's own type. It raises ValueError with a short
reason. What the annotations do not allow, nesting above all, is refused by that.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin

Check = Callable[[Any, int, int], Any]

_SCALARS = (NoneType, bool, int, float, str, bytes)


def _exact(kind: type) -> Check:
    def check(value: Any, text: int, items: int) -> Any:
        if type(value) is not kind:
            raise ValueError(f"not a {kind.__name__}")
        return value

    return check


def _natural(value: Any, text: int, items: int) -> int:
    if type(value) is not int or value < 0:
        raise ValueError("not a natural number")
    return value


def _real(value: Any, text: int, items: int) -> float:
    if type(value) is not float and type(value) is not int:
        raise ValueError("not a number")
    return float(value)


def _text(value: Any, text: int, items: int) -> str:
    if type(value) is not str or len(value) > text:
        raise ValueError(f"not a string of at most {text} characters")
    return value


def _params(value: Any, text: int, items: int) -> dict[str, Any]:
    """Scalars and flat lists of scalars by name; lists come out as lists."""
    if type(value) is not dict or len(value) > items:
        raise ValueError(f"not a map of at most {items} entries")
    checked: dict[str, Any] = {}
    for name, held in value.items():
        _text(name, text, items)
        if type(held) is not tuple:
            checked[name] = _scalar(held, text, items)
        elif len(held) > items:
            raise ValueError(f"holds a list of more than {items} items")
        else:
            checked[name] = [_scalar(v, text, items) for v in held]
    return checked


def _scalar(value: Any, text: int, items: int) -> Any:
    if type(value) not in _SCALARS:
        raise ValueError("holds neither scalars nor flat lists of them")
    return _text(value, text, items) if type(value) is str else value


def _tuple_of(item: Check) -> Check:
    def check(value: Any, text: int, items: int) -> tuple[Any, ...]:
        if type(value) is not tuple or len(value) > items:
            raise ValueError(f"not a list of at most {items} items")
        return tuple(item(v, text, items) for v in value)

    return check


def _optional(some: Check) -> Check:
    return lambda value, text, items: None if value is None else some(value, text, items)


_PLAIN: Mapping[Any, Check] = {
    str: _text,
    int: _natural,
    float: _real,
    bool: _exact(bool),
    bytes: _exact(bytes),
}


def check_of(annotation: Any) -> Check:
    """The check for a field annotated so. Raises TypeError for one no message may have."""
    if annotation in _PLAIN:
        return _PLAIN[annotation]
    origin, args = get_origin(annotation), get_args(annotation)
    if origin is tuple and len(args) == 2 and args[1] is ...:
        return _tuple_of(check_of(args[0]))
    if origin in (UnionType, Union) and len(args) == 2 and NoneType in args:
        return _optional(check_of(next(a for a in args if a is not NoneType)))
    if origin is Mapping:
        return _params
    raise TypeError(f"no message may have a field of {annotation!r}")
