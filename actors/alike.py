"""Whether what comes back is what was written, types included: to Python, `1 == True == 1.0`; to a user they differ."""

import collections
import dataclasses
import datetime
import decimal
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel

PLAIN = frozenset({str, int, bool, bytes, type(None)})
"""Types that are alike if they are equal, which most of what is written consists of."""


def difference(written: Any, back: Any) -> str | None:
    """Where the two differ, as a path (`lines.0.qty`, "" for the value itself); None if they are alike.

    A time with a zone is alike if it is the same wall time at the same offset: JSON keeps the offset, not the zone's
    name. What is equal but another type (True and 1, a tuple and a list, a model and its subclass) differs.
    """
    kind = written.__class__  # not type(): a state that is not read yet is of a subclass
    if kind is not back.__class__:
        return ""
    if kind in PLAIN:
        return None if written == back else ""
    match written:
        case BaseModel():
            return _first(_model_parts(written), _model_parts(back))
        case Mapping():
            if len(written) != len(back):
                return ""
            keys = {(type(key), key): key for key in back}
            if any((type(key), key) not in keys for key in written):
                return ""
            pairs = {str(key): (value, back[key]) for key, value in written.items()}
            return _first({k: a for k, (a, _) in pairs.items()}, {k: b for k, (_, b) in pairs.items()})
        case list() | tuple():
            if len(written) != len(back):
                return ""
            for index, (item, other) in enumerate(zip(written, back, strict=True)):
                inner = difference(item, other)
                if inner is not None:
                    return f"{index}.{inner}" if inner else str(index)
            return None
        case collections.deque():
            return difference(list(written), list(back)) if written.maxlen == back.maxlen else ""
        case set() | frozenset():
            others = {(type(item), item): item for item in back}
            for item in written:
                other = others.get((type(item), item), others)
                if other is others or difference(item, other) is not None:
                    return ""
            return None if len(written) == len(back) else ""
        case float() | decimal.Decimal():
            return None if repr(written) == repr(back) and written == back else ""  # also 0.0 and -0.0, 1.0 and 1.00
        case datetime.datetime() | datetime.time():
            same = written.replace(tzinfo=None) == back.replace(tzinfo=None) and written.utcoffset() == back.utcoffset()
            return None if same and (written.tzinfo is None) == (back.tzinfo is None) else ""
    if dataclasses.is_dataclass(written):
        return _first(_fields(written), _fields(back))
    try:
        return None if bool(written == back) else ""
    except Exception:  # of the user's own type
        return ""


def _first(written: Mapping[str, Any], back: Mapping[str, Any]) -> str | None:
    if written.keys() != back.keys():
        return ""
    for name, value in written.items():
        inner = difference(value, back[name])
        if inner is not None:
            return f"{name}.{inner}" if inner else name
    return None


def _model_parts(model: BaseModel) -> dict[str, Any]:
    parts = dict(model.__dict__) | (model.__pydantic_extra__ or {})
    private = model.__pydantic_private__ or {}
    return parts | private


def _fields(thing: Any) -> dict[str, Any]:
    return {field.name: getattr(thing, field.name) for field in dataclasses.fields(thing) if field.compare}
