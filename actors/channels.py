"""A channel is one typed cell of a run's state: a field of the user's model, with a rule for merging writes.

Values are kept as JSON text, so what a node reads after a crash is, letter for letter, what it would have read without
one (law 6). A write is validated before it is stored, and refused if it would come back different: of another value or
type (see alike.py; of a time's zone, JSON keeps the offset, not the name). Bytes may be any: they are stored as base64,
but in models of the user's own, which have to ask for it: ConfigDict(ser_json_bytes="base64", val_json_bytes="base64").
"""

import json
import typing
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, PydanticUserError, TypeAdapter, ValidationError
from pydantic.fields import FieldInfo

from understudy.actors.alike import difference
from understudy.actors.errors import GraphError, InvalidWrite
from understudy.actors.reducers import Barrier, Remove, append, ephemeral, merge, messages, topic, union
from understudy.actors.values import GROWING, Change, compact, folded, joined

Reducer = Callable[[Any, Any], Any]
Kind = Literal["last", "append", "union", "merge", "messages", "topic", "ephemeral", "barrier", "fold"]
"""How writes merge. `fold`: with any other function, which is given the whole value."""

KINDS: dict[Any, Kind] = {
    append: "append",
    union: "union",
    merge: "merge",
    messages: "messages",
    topic: "topic",
    ephemeral: "ephemeral",
}
CONTAINERS: dict[Kind, tuple[type, ...]] = {
    "append": (list,),
    "union": (set, frozenset, list),
    "merge": (dict,),
    "messages": (list,),
    "topic": (list,),
    "barrier": (dict,),
}


@dataclass(frozen=True)
class Channel:
    """One field of the state model."""

    name: str
    adapter: TypeAdapter[Any]
    reducer: Reducer | None
    type_name: str
    required: bool
    kind: Kind
    info: FieldInfo
    item: TypeAdapter[Any] | None = None
    """Of one message, or of what one writer gives to a barrier."""

    def encode(self, value: Any, writer: str) -> str:
        """JSON text of a whole value. Raises InvalidWrite that names writer, channel, path and value."""
        return self._encode(self.adapter, value, writer, "")

    def encode_write(self, value: Any, writer: str, node: str) -> str:
        """JSON text of what a node writes. Raises InvalidWrite that names writer, channel, path and value."""
        match self.kind:
            case "messages":
                return self._encode_messages(value, writer)
            case "barrier":
                return self._encode_vote(value, writer, node)
            case _:
                return self.encode(value, writer)

    def _encode(self, adapter: TypeAdapter[Any], value: Any, writer: str, path: str) -> str:
        try:
            checked = adapter.validator.validate_python(value)
            text = adapter.serializer.to_json(checked).decode()
        except Exception as error:  # a validator of the user's may raise anything
            raise self._refusal(value, writer, path, reason_of(error) + _bytes_remedy(error)) from None
        # A NaN becomes null, a model of a subclass one of its base: what cannot come back must not go in.
        try:
            back = adapter.validator.validate_json(text)
            where = difference(checked, back)
        except Exception as error:
            reason = f"it is stored as {short(text)} and cannot be read back: {reason_of(error)}"
            raise self._refusal(value, writer, path, reason) from None
        if where is not None:
            was, came = _at(checked, where), _at(back, where)
            raise self._refusal(
                value,
                writer,
                ".".join(filter(None, (path, where))),
                f"{short(was)} would come back as {short(came)}; store something that JSON can hold in this type",
            )
        if adapter is self.adapter:
            self._check_whole(text, value, writer)
        return text

    def _check_whole(self, text: str, value: Any, writer: str) -> None:
        """That the reducers can merge it without the user's code."""
        if self.kind not in CONTAINERS:
            return
        bracket = "{" if dict in CONTAINERS[self.kind] else "["
        if not text.startswith(bracket):
            raise self._refusal(value, writer, "", f"its JSON has to begin with {bracket}, not {short(text)}")
        if self.kind == "messages":
            for index, item in enumerate(json.loads(text)):
                self._check_message(item, writer, str(index))

    def _encode_messages(self, value: Any, writer: str) -> str:
        assert self.item is not None
        if not isinstance(value, list | tuple):
            raise self._refusal(value, writer, "", "write a list of messages")
        texts = []
        for index, item in enumerate(value):
            if isinstance(item, Remove):
                if not isinstance(item.id, str | int):
                    raise self._refusal(item, writer, str(index), "the id of a message is a str or an int")
                texts.append(compact([item.id]))
                continue
            text = self._encode(self.item, item, writer, str(index))
            self._check_message(json.loads(text), writer, str(index))
            texts.append(text)
        return "[" + ",".join(texts) + "]"

    def _check_message(self, message: Any, writer: str, path: str) -> None:
        known = message.get("id") if isinstance(message, dict) else None
        if not isinstance(known, str | int) or isinstance(known, bool):
            raise self._refusal(message, writer, path, "a message needs an `id`, a str or an int; give it one")

    def _encode_vote(self, value: Any, writer: str, node: str) -> str:
        assert self.item is not None
        assert isinstance(self.reducer, Barrier)
        if node not in self.reducer.writers:
            raise self._refusal(
                value, writer, "", f"its barrier waits for {', '.join(self.reducer.writers)} only; add {node!r} to it"
            )
        return f"{{{json.dumps(node)}:{self._encode(self.item, value, writer, node)}}}"

    def _refusal(self, value: Any, writer: str, path: str, reason: str) -> InvalidWrite:
        place = f"at {path}: " if path else ""
        return InvalidWrite(
            f"{writer} wrote {short(value)} to channel {self.name!r} ({self.type_name}): {place}{reason}"
        )

    def decode(self, text: str) -> Any:
        """The value as a node sees it: a fresh object each time, so that nodes cannot change each other's."""
        # (The adapter's own methods take as long again to find out that nobody wants anything special.)
        return self.adapter.validator.validate_json(self.shown(text))

    def shown(self, text: str) -> str:
        """JSON text of the value as a node sees it: of a barrier that still waits, the default."""
        if self.kind != "barrier" or self.is_complete(text):
            return text
        return self.default_text or "{}"

    def is_complete(self, text: str) -> bool:
        """Of a barrier: whether all its writers have written."""
        assert isinstance(self.reducer, Barrier)
        return set(json.loads(text)) >= set(self.reducer.writers)

    @cached_property
    def default_text(self) -> str | None:
        """JSON text of the field's default; None if it is required. Raises InvalidWrite if it cannot be stored."""
        if self.required:
            return None
        return self.encode(self.info.get_default(call_default_factory=True), "the model's default")

    def change(self, old: str | None, present: Change | None, text: str, writer: str) -> Change:
        """The change that a write makes. `present`: the change that the same superstep made before.

        `old` is the text before the superstep; only channels that do not grow need it (see `needs_old`).
        """
        new = Change(text)
        match self.kind:
            case "append" | "union" | "merge" | "messages":
                new = Change(text, self.kind)
                return new if present is None else present.then(new)
            case "topic":
                return new if present is None else Change(joined(present.text, text))
            case "barrier":
                if present is not None:
                    return Change(joined(present.text, text), present.op)
                return new if old is None or self.is_complete(old) else Change(text, "merge")
            case "fold":
                before = old if present is None else present.text
                return new if before is None else Change(self._reduced(before, text, writer))
            case "last" | "ephemeral":
                return new
        typing.assert_never(self.kind)

    @property
    def needs_old(self) -> bool:
        return self.kind in ("fold", "barrier")

    @property
    def is_shared(self) -> bool:
        """Whether several nodes may write to it in one superstep."""
        return self.kind not in ("last", "ephemeral")

    def opened(self, text: str) -> str:
        """The text of a first value, as it would be after having been written."""
        return folded(self.kind, [text]) if self.kind in ("union", "messages") else text

    def expired(self, text: str) -> Change | None:
        """What becomes of a value that nobody wrote in this superstep; None if it stays."""
        if self.kind == "topic":
            return Change("[]") if text != "[]" else None
        if self.kind != "ephemeral":
            return None
        default = self.default_text
        if default is None:
            return Change("null", "unset")
        return Change(default) if text != default else None

    def _reduced(self, old: str, new: str, writer: str) -> str:
        assert self.reducer is not None
        try:
            value = self.reducer(self.decode(old), self.decode(new))
        except BaseException as error:  # SystemExit too: it would end the actor, in every restart
            raise InvalidWrite(
                f"the reducer of channel {self.name!r} failed on the write of {writer}: {reason_of(error)}"
            ) from error
        return self.encode(value, f"the reducer of channel {self.name!r}, after {writer},")


def channels_of(model: type[BaseModel]) -> dict[str, Channel]:
    """The channels of a state model, by field name. Raises GraphError where a field cannot be one."""
    return {name: _channel(model, name, info) for name, info in model.model_fields.items()}


def _channel(model: type[BaseModel], name: str, info: FieldInfo) -> Channel:
    who = f"field {name!r} of {model.__name__}"
    if info.alias or info.validation_alias or info.serialization_alias:
        raise GraphError(f"{who} has an alias; a channel has one name, so remove it")
    reducers = [item for item in info.metadata if callable(item) and not isinstance(item, type)]
    if len(reducers) > 1:
        raise GraphError(f"{who} has {len(reducers)} reducers; keep one")
    reducer = reducers[0] if reducers else None
    rest = [item for item in info.metadata if item not in reducers]
    annotation: Any = info.annotation
    for item in rest:
        annotation = Annotated[annotation, item]
    kind = _kind(who, info.annotation, reducer, rest)
    inner: TypeAdapter[Any] | None = None
    try:
        adapter = adapter_of(annotation, model)
        if kind in ("messages", "barrier"):
            arguments = typing.get_args(info.annotation)
            inner = adapter_of(arguments[-1] if arguments else Any, model)
    except Exception as error:
        raise GraphError(f"{who} cannot be stored as JSON: {error}") from error
    type_name = getattr(info.annotation, "__name__", None) or str(info.annotation)
    if typing.get_args(info.annotation):
        type_name = str(info.annotation)
    channel = Channel(name, adapter, reducer, type_name, info.is_required(), kind, info, inner)
    if kind in ("ephemeral", "barrier"):
        try:
            default = channel.default_text
        except Exception as error:
            raise GraphError(f"{who} needs a default that can be stored, as it goes back to it: {error}") from None
        if kind == "barrier" and default is None:
            raise GraphError(f"{who} needs a default for the time in which its barrier waits; give it {{}}")
    return channel


def _kind(who: str, annotation: Any, reducer: Reducer | None, rest: list[Any]) -> Kind:
    """Raises GraphError: the reducer does not fit the type."""
    if reducer is None:
        return "last"
    kind: Kind = "barrier" if isinstance(reducer, Barrier) else KINDS.get(reducer, "fold")
    origin = typing.get_origin(annotation) or annotation
    allowed = CONTAINERS.get(kind)
    if allowed and origin not in allowed:
        named = getattr(reducer, "__name__", "barrier")
        raise GraphError(
            f"{who} has the reducer {named}, so it has to be a {' or '.join(t.__name__ for t in allowed)}, not "
            f"{annotation}"
        )
    if kind == "barrier" and (not isinstance(reducer, Barrier) or not reducer.writers):
        raise GraphError(f'{who} has a barrier without writers; name the nodes, e.g. barrier("a", "b")')
    if rest and kind in ("messages", "topic", "barrier"):
        raise GraphError(
            f"{who} has {rest[0]!r} beside its reducer; what is written is checked item by item, so put it on the items"
        )
    # A limit on the whole (at most 5 items) can only be checked on the whole, so that is merged, and stored.
    return "fold" if rest and kind in GROWING else kind


def adapter_of(annotation: Any, model: type[BaseModel]) -> TypeAdapter[Any]:
    """As the model would read the field, but with any bytes: as utf-8, which is pydantic's default, most are none."""
    config = ConfigDict(**{**model.model_config, "ser_json_bytes": "base64", "val_json_bytes": "base64"})
    for name in ("title", "extra", "frozen", "from_attributes"):
        config.pop(name, None)  # type: ignore[misc]
    try:
        return TypeAdapter(annotation, config=config)
    except PydanticUserError as error:
        if error.code != "type-adapter-config-unused":
            raise
        return TypeAdapter(annotation)  # a model, a dataclass or a TypedDict, which have their own


def _bytes_remedy(error: Exception) -> str:
    """pydantic's own default for bytes in JSON is utf-8; a nested model has to say otherwise itself."""
    if "utf-8" not in str(error) and "utf8" not in str(error):
        return ""
    return (
        '; if these are bytes in a model of your own, set model_config = ConfigDict(ser_json_bytes="base64", '
        'val_json_bytes="base64") in it'
    )


def _at(value: Any, path: str) -> Any:
    """What lies at a path that `difference` found, as far as it can be followed."""
    for part in filter(None, path.split(".")):
        if isinstance(value, dict):
            value = next((item for key, item in value.items() if str(key) == part), value)
        elif isinstance(value, list | tuple) and part.isdigit() and int(part) < len(value):
            value = value[int(part)]
        else:
            value = getattr(value, part, value)
    return value


def short(value: Any) -> str:
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
