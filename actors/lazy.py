"""The state as a node sees it: an instance of the user's model whose fields are read from JSON when they are asked for.

A node that looks at a counter does not pay for the ten thousand messages beside it (law 8). Only direct reads of
fields are lazy: whatever else is asked of the instance (its dump, its equality, a copy, a method) reads the rest
first and makes it a plain instance of the model, so that there is no difference to be seen - but for `type(state)`,
which nobody can answer for it: a subclass, until then.
"""

import abc
import functools
from collections.abc import Callable, Mapping
from typing import Any

from pydantic import BaseModel

from understudy.actors.channels import Channel

_PENDING = "\0pending"
"""Key in the instance's own dict; no field can be named so."""
_KEPT = frozenset(
    {
        "__new__",
        "__init__",
        "__del__",
        "__class__",
        "__dict__",
        "__getattribute__",
        "__getattr__",
        "__init_subclass__",
        "__subclasshook__",
        "__class_getitem__",
    }
)
"""Special names that are not wrapped: they make the class, or are how it is lazy."""

_dict_of: Callable[[Any], dict[str, Any]] = BaseModel.__dict__["__dict__"].__get__


def state_of(model: type[BaseModel], channels: Mapping[str, Channel], values: Mapping[str, str]) -> BaseModel:
    """The state as the user's model, fresh from the stored text. Channels without a value are left out.

    Raises pydantic.ValidationError, here or at the first read of a field, for a text that is not of the model; texts
    that were validated before they were stored never are.
    """
    given = [name for name in values if name in channels]
    if model.__pydantic_post_init__ and model.model_post_init.__name__ != "init_private_attributes":
        # The model wants to see all of its fields at once.
        return model.model_construct(**{name: channels[name].decode(values[name]) for name in given})
    if len(given) == _fields_of_a_simple(model):  # as model_construct does where there is nothing left for it to find
        state = model.__new__(model)
        object.__setattr__(state, "__pydantic_fields_set__", set(given))
        object.__setattr__(state, "__pydantic_extra__", None)
        object.__setattr__(state, "__pydantic_private__", None)
        fields = _dict_of(state)
    else:
        state = model.model_construct(_fields_set=set(given))
        fields = _dict_of(state)
        for name in given:
            fields.pop(name, None)
    fields[_PENDING] = {name: (channels[name], values) for name in given}
    object.__setattr__(state, "__class__", _lazy(model))
    return state


@functools.lru_cache(maxsize=256)
def _fields_of_a_simple(model: type[BaseModel]) -> int:
    """How many fields a model has that is nothing else but those; -1 for another."""
    more = model.__pydantic_post_init__ or model.__pydantic_root_model__ or model.model_config.get("extra") == "allow"
    return -1 if more else len(model.model_fields)


def _read(state: Any, name: str) -> Any:
    """The value of a field that was not read yet."""
    fields = _dict_of(state)
    pending = fields.get(_PENDING)
    if pending is None or name not in pending:
        return fields[name]
    channel, values = pending[name]
    # Of two threads that read at once, one decides: both have to see the same object.
    value = fields.setdefault(name, channel.decode(values[name]))
    pending.pop(name, None)
    return value


def plain(state: Any) -> None:
    """Read what is not read yet; from here on it is a plain instance of its model."""
    fields = _dict_of(state)
    pending = fields.get(_PENDING)
    if pending is None:
        return
    for name in list(pending):
        _read(state, name)
    model: type[BaseModel] = type(state).__mro__[1]
    if fields.pop(_PENDING, None) is not None:
        in_order = {name: fields[name] for name in model.model_fields if name in fields}
        for name in in_order:
            del fields[name]
        fields.update(in_order)
        object.__setattr__(state, "__class__", model)


@functools.lru_cache(maxsize=256)
def _lazy(model: type[BaseModel]) -> type[BaseModel]:
    """The class of an instance of `model` that has not been read in full. Made without pydantic's own machinery, which
    would build a second schema, and with the layout of `model`, so that an instance can turn from one into the other.
    """
    names = frozenset(model.model_fields)

    def get(self: Any, name: str) -> Any:
        if name in names:
            fields = _dict_of(self)
            if name in fields:
                return fields[name]
            if name in fields.get(_PENDING, ()):
                return _read(self, name)
        elif name == "__class__":  # what isinstance asks
            return model
        plain(self)
        return getattr(self, name)

    body: dict[str, Any] = {"__slots__": (), "__module__": model.__module__, "__qualname__": model.__qualname__}
    body["__getattribute__"] = get
    for name in dir(model):
        if name.startswith("__") and name.endswith("__") and name not in _KEPT and _is_method(model, name):
            body[name] = _after_reading(model, name)
    body["__hash__"] = _after_reading(model, "__hash__") if model.__hash__ is not None else None
    # Of pydantic's metaclass, but not through its __new__.
    return abc.ABCMeta.__new__(type(model), model.__name__, (model,), body)


def _is_method(model: type[BaseModel], name: str) -> bool:
    """Whether the name is a method of instances: found on the class as a plain function or a slot."""
    for base in model.__mro__:
        if name in vars(base):
            found = vars(base)[name]
            return callable(found) and not isinstance(found, type | classmethod | staticmethod)
    return False


def _after_reading(model: type[BaseModel], name: str) -> Callable[..., Any]:
    def call(self: Any, *args: Any, **named: Any) -> Any:
        plain(self)
        return getattr(model, name)(self, *args, **named)

    return call
