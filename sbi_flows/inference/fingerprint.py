"""What a simulator does, as far as its code and the values it refers to tell: to notice that it is another one than before."""

from __future__ import annotations

import functools
import hashlib
import inspect
import platform
from collections.abc import Iterator, Mapping
from types import CodeType, FunctionType, MethodType
from typing import Any

import numpy as np
from torch import Tensor

_PLAIN = (type(None), bool, int, float, complex, str, bytes, np.generic)
_LARGEST = 1000  # items of a container that are looked at


def fingerprint(simulator: Any) -> dict[str, str]:
    """Hashes of the parts of a callable by what they are, such as ``{"the code of simulate": ..., "the value of SIGMA": ...}``.

    Parts are its bytecode and that of the functions of its module which it calls, and the numbers, strings, arrays, and lists and
    dicts of these that are its defaults, its arguments (``functools.partial``), its attributes, or variables it refers to, global or of
    the function around it. Not seen are what it does in other modules and in files, and objects of other kinds. Bytecode counts
    under the same minor version of Python only.

    Examples
    --------
    >>> scale = 2.0
    >>> sorted(fingerprint(lambda theta, shift=0.5: scale * theta + shift))[0][:27]
    'the code of <lambda> (Pytho'
    """
    return dict(_parts(simulator, set()))


def changed(before: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """The parts that differ, or that only one of the two has; but for those marked "" before, which may be anything."""
    python = f"(Python {_version()})"
    comparable = [part for part in {**before, **now} if "(Python" not in part or python in part]
    same_python = any(python in part for part in before) or not any("(Python" in part for part in before)
    if not same_python:
        comparable = [part for part in comparable if part in before and part in now]
    return [part.removesuffix(" " + python) for part in comparable if before.get(part) not in ("", now.get(part))]


def _parts(thing: Any, seen: set[int]) -> Iterator[tuple[str, str]]:
    if id(thing) in seen:
        return
    seen.add(id(thing))
    if isinstance(thing, functools.partial):
        yield from _parts(thing.func, seen)
        yield from _values({**{f"argument {i}": value for i, value in enumerate(thing.args)}, **thing.keywords}, seen)
    elif isinstance(thing, MethodType):
        yield from _parts(thing.__func__, seen)
        yield from _values(getattr(thing.__self__, "__dict__", {}), seen)
    elif isinstance(thing, FunctionType):
        yield from _function(inspect.unwrap(thing), seen)
    elif isinstance(called := vars(type(thing)).get("__call__"), FunctionType):
        yield from _function(called, seen)
        yield from _values(getattr(thing, "__dict__", {}), seen)
    else:
        yield "its name", _digest(getattr(thing, "__qualname__", type(thing).__qualname__))


def _function(function: FunctionType, seen: set[int]) -> Iterator[tuple[str, str]]:
    yield f"the code of {function.__name__} (Python {_version()})", _digest(repr(_code(function.__code__)))
    defaults = inspect.signature(function).parameters.values()
    yield from _values({each.name: each.default for each in defaults if each.default is not each.empty}, seen)
    around = inspect.getclosurevars(function)
    yield from _values({**around.nonlocals, **around.globals}, seen, function.__module__)


def _values(named: Mapping[str, Any], seen: set[int], module: str | None = None) -> Iterator[tuple[str, str]]:
    """Values by name; functions are followed where they are of the same module, or of one that is not known."""
    for name, value in named.items():
        if isinstance(value, FunctionType | functools.partial | MethodType):
            if module is None or getattr(value, "__module__", module) == module:
                yield from _parts(value, seen)
            continue
        text = _text(value)
        if text is not None:
            yield f"the value of {name}", _digest(text)


def _text(value: Any) -> str | None:
    """A text that is another for another value; None for what is no plain value."""
    if isinstance(value, _PLAIN):
        return f"{type(value).__name__} {value!r}"
    if isinstance(value, Tensor):
        value = value.detach().cpu().numpy()
    if isinstance(value, np.ndarray) and value.dtype.kind in "fiubcSU":
        return f"{value.dtype} {value.shape} {hashlib.blake2b(np.ascontiguousarray(value).tobytes()).hexdigest()}"
    if isinstance(value, Mapping) and len(value) <= _LARGEST:
        texts = [f"{key!r}: {_text(item)}" for key, item in value.items()]
    elif isinstance(value, list | tuple | set | frozenset) and len(value) <= _LARGEST:
        texts = [str(_text(item)) for item in value]
    else:
        return None
    return str(sorted(texts) if isinstance(value, set | frozenset) else texts)


def _code(code: CodeType) -> tuple:
    """What makes a function what it is, without its name and place in a file."""
    constants = [_code(each) if isinstance(each, CodeType) else _text(each) for each in code.co_consts]
    return code.co_code, constants, code.co_names, code.co_varnames


def _version() -> str:
    return ".".join(platform.python_version_tuple()[:2])


def _digest(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
