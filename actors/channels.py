"""A channel is one typed cell of a run's state: a field of the user's model, with a rule for merging writes.

Values are kept as JSON text, so what a node reads after a crash is, letter for letter, what it would have read without
one (law 6). A write is validated before it is stored, and refused if it would come back different.

The idea of channels with reducers is LangGraph's (`langgraph.channels`), after Pregel's message combiners.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, TypeAdapter, ValidationError
from pydantic.fields import FieldInfo

from understudy.actors.errors import GraphError, InvalidWrite

T = TypeVar("T")
Reducer = Callable[[Any, Any], Any]


def append(old: list[T], new: list[T]) -> list[T]:
    """Reducer: the new items go behind the old ones. Only the new ones are stored (law 8)."""
    return [*old, *new]


def add(old: Any, new: Any) -> Any:
    """Reducer: old + new, e.g. for counts and sums."""
    return old + new


@dataclass(frozen=True)
class Channel:
    """One field of the state model."""

    name: str
    adapter: TypeAdapter[Any]
    reducer: Reducer | None
    type_name: str
    required: bool

    def encode(self, value: Any, writer: str) -> str:
        """JSON text of a value. Raises InvalidWrite that names writer, channel, path and value."""
        try:
            checked = self.adapter.validate_python(value)
            text = self.adapter.dump_json(checked).decode()
        except Exception as error:  # a validator of the user's may raise anything
            raise InvalidWrite(
                f"{writer} wrote {_short(value)} to channel {self.name!r} ({self.type_name}): {reason_of(error)}"
            ) from None
        # A NaN becomes null, a set of a custom type a list: what cannot come back must not go in.
        try:
            back = self.adapter.validate_json(text)
            same = bool(back == checked)
        except Exception as error:
            raise InvalidWrite(
                f"{writer} wrote {_short(value)} to channel {self.name!r} ({self.type_name}), which is stored as "
                f"{_short(text)} and cannot be read back: {reason_of(error)}"
            ) from None
        if not same:
            raise InvalidWrite(
                f"{writer} wrote {_short(value)} to channel {self.name!r} ({self.type_name}), which would come back "
                f"as {_short(back)}; store something that JSON can hold"
            )
        return text

    def decode(self, text: str) -> Any:
        """The value as a node sees it: a fresh object each time, so that nodes cannot change each other's."""
        return self.adapter.validate_json(text)

    @property
    def appends(self) -> bool:
        return self.reducer is append

    def merge(self, old: str | None, new: str, writer: str) -> str:
        """The channel's JSON text after a write. Without a reducer, the new value."""
        if self.reducer is None or old is None:
            return new
        if self.appends:
            return joined(old, new)
        try:
            value = self.reducer(self.decode(old), self.decode(new))
        except BaseException as error:  # SystemExit too: it would end the actor, in every restart
            raise InvalidWrite(
                f"the reducer of channel {self.name!r} failed on the write of {writer}: {reason_of(error)}"
            ) from error
        return self.encode(value, f"the reducer of channel {self.name!r}, after {writer},")


def joined(old: str, new: str) -> str:
    """Two JSON arrays as one, without reading what is in them."""
    first, second = old.strip(), new.strip()
    if first == "[]":
        return second
    return first if second == "[]" else f"{first[:-1]},{second[1:]}"


def channels_of(model: type[BaseModel]) -> dict[str, Channel]:
    """The channels of a state model, by field name. Raises GraphError where a field cannot be one."""
    return {name: _channel(model, name, info) for name, info in model.model_fields.items()}


def _channel(model: type[BaseModel], name: str, info: FieldInfo) -> Channel:
    if info.alias or info.validation_alias or info.serialization_alias:
        raise GraphError(f"field {name!r} of {model.__name__} has an alias; a channel has one name, so remove it")
    reducers = [item for item in info.metadata if callable(item) and not isinstance(item, type)]
    if len(reducers) > 1:
        raise GraphError(f"field {name!r} of {model.__name__} has {len(reducers)} reducers; keep one")
    annotation: Any = info.annotation
    for item in info.metadata:
        if item not in reducers:
            annotation = Annotated[annotation, item]
    reducer = reducers[0] if reducers else None
    if reducer is append and not str(annotation).startswith(("list", "typing.List", "typing.Annotated")):
        raise GraphError(
            f"field {name!r} of {model.__name__} has the reducer append, so it has to be a list, not {annotation}"
        )
    try:
        adapter: TypeAdapter[Any] = TypeAdapter(annotation)
    except Exception as error:
        raise GraphError(f"field {name!r} of {model.__name__} cannot be stored as JSON: {error}") from error
    type_name = getattr(info.annotation, "__name__", None) or str(info.annotation)
    return Channel(name, adapter, reducer, type_name, info.is_required())


def state_of(model: type[BaseModel], channels: Mapping[str, Channel], values: Mapping[str, str]) -> BaseModel:
    """The state as the user's model, fresh from the stored text. Channels without a value are left out."""
    fields = {name: channels[name].decode(text) for name, text in values.items() if name in channels}
    return model.model_construct(**fields)


def _short(value: Any) -> str:
    try:
        text = repr(value)
    except Exception as error:  # too deep, too many digits, or the user's own
        return f"a {type(value).__name__} (its repr raises {type(error).__name__})"
    return text if len(text) <= 120 else text[:117] + "..."


def reason_of(error: BaseException) -> str:
    """What was wrong, on one line: `lines.0.qty: Input should be a valid integer`."""
    if isinstance(error, ValidationError):
        parts = []
        for item in error.errors(include_url=False, include_input=False)[:3]:
            where = ".".join(str(piece) for piece in item["loc"])
            parts.append(f"{where}: {item['msg']}" if where else item["msg"])
        return "; ".join(parts)
    return f"{type(error).__name__}: {error}"
