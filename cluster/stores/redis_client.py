"""Asks Redis, and asks again: one server, or the nodes of a cluster, through one connection each.

It sends again after a lost connection, for half a minute, because every request of the store is made so that it applies
once (law 2): a server that is killed and started again, or a failover, is a wait and nothing more. Faults are told
apart (law 11): what time heals is tried again (a start, a failover, a slot that moves), what an operator must heal is
`StoreUnavailable` with the remedy, a wrong password is the caller's, the rest is a bug.
"""

import asyncio
import contextlib
import re
import ssl
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import hiredis

from understudy.actors.errors import CallerError, StoreUnavailable
from understudy.cluster.stores.redis_address import Address, Node
from understudy.cluster.stores.redis_anew import begin_anew
from understudy.cluster.stores.redis_cluster import SlotMap, redirection
from understudy.cluster.stores.redis_link import Link, Script, pack

GIVE_UP_S = 30.0
"""How long a request is tried again before the store counts as unavailable: a server that starts again on its
append-only file, or a replica that takes over, is back by then."""
CONNECT_S = 3.0
BACKOFF_S = (0.02, 0.05, 0.1, 0.2, 0.4)
REDIRECTIONS_MAX = 4
"""So many in a row are followed at once; after that a pause, as the cluster is being changed."""

_HEALS = ("LOADING", "BUSY", "TRYAGAIN", "CLUSTERDOWN", "MASTERDOWN", "READONLY", "ERR max number of clients")
"""Errors that pass by themselves: a start, a failover, a slow script of someone else."""
_REMEDIES = {
    "OOM": "its memory is full: raise `maxmemory`, or let `understudy` sweep sooner (shorter retention)",
    "MISCONF": "it cannot write its append-only file: look at its log and at the disk's free space",
    "NOREPLICAS": "too few replicas are in sync for `min-replicas-to-write`: bring them back",
}
_DENIED = (
    "NOAUTH", "WRONGPASS", "NOPERM", "ERR AUTH", "ERR invalid password", "ERR Client sent AUTH",
    "ERR The user executing the script can't",
)  # fmt: skip
_REFUSED = re.compile("NOPERM .* run the '([^']+)' command")

Where = Node | None
"""A node of a cluster; None: where the URL leads."""


@dataclass
class _Request:
    """Commands that are asked until each has an answer."""

    commands: Sequence[bytes]
    text: bool
    at: Where = None
    """Ask only there."""
    settled: dict[int, Any] = field(default_factory=dict)
    asking: dict[int, Node] = field(default_factory=dict)
    """A slot is on its way to another node, which answers for it this once."""
    unloaded: set[Where] = field(default_factory=set)
    """Nodes that do not know the scripts."""
    pauses: int = 0
    redirections: int = 0
    must_pause: bool = False
    trouble: str = ""

    def open(self) -> list[int]:
        return [index for index in range(len(self.commands)) if index not in self.settled]


class RedisClient:
    """Shared by all coroutines of one event loop; opened on another one, it starts afresh."""

    def __init__(self, address: Address, scripts: Sequence[Script]) -> None:
        self.address = address
        self.slots: SlotMap | None = None
        """Set once it is known to be a cluster."""
        self.give_up_s: float | None = None
        """Instead of GIVE_UP_S."""
        self._scripts = scripts
        self._links: dict[Where, Link] = {}
        self._locks: defaultdict[Where, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._learning = asyncio.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._first = 0
        """Which of the URL's nodes it leads to."""
        self._lost_track = False
        """The map is old."""

    async def ask(self, *commands: bytes, text: bool = True) -> list[Any]:
        """The answers to these commands, sent in one go. What must not be retried is raised, see above."""
        slots = self.slots
        where = slots.node_of(commands[0]) if slots else None
        link = self._links.get(where)
        answers: list[Any] = []
        if (
            link is not None
            and not link.closed
            and link.loop is asyncio.get_running_loop()
            and (slots is None or len(commands) == 1)
        ):
            try:
                answers = await link.request(
                    b"".join(commands) if len(commands) > 1 else commands[0], len(commands), text
                )
            except OSError as error:  # every ConnectionError and TimeoutError is one
                return await self._ask_at_length(_Request(commands, text, trouble=_words(error)), None, [])
            if not any(isinstance(answer, hiredis.ReplyError) for answer in answers):
                return answers
        return await self._ask_at_length(_Request(commands, text), where, answers)

    async def ask_each(self, *commands: bytes) -> dict[str, list[Any]]:
        """The answers of every node that has keys, by where it is."""
        nodes: list[Where] = [*self.slots.nodes] if self.slots else []
        return {
            self._address_of(node).where: await self._ask_at_length(_Request(commands, True, at=node), node, [])
            for node in nodes or [None]
        }

    async def find_nodes(self) -> None:
        """What `ask` does by itself at the first answer that says so: it is a cluster, learn who has what."""
        self.slots = self.slots or SlotMap()
        self._lost_track = True
        await self._learn()

    async def close(self) -> None:
        for link in self._links.values():
            link.close()
        self._links.clear()

    async def subscribe(self, channel: str, on_message: Callable[[], None]) -> Link:
        """A connection of its own, on which `on_message` is called for each message, and once when it is lost.

        Nodes of a cluster pass messages on to one another, so any of them will do."""
        nodes: list[Where] = [None, *self.slots.nodes] if self.slots else [None]
        for node in nodes[:-1]:
            with contextlib.suppress(OSError):
                return await self._connect(node, on_message, pack("SUBSCRIBE", channel))
        return await self._connect(nodes[-1], on_message, pack("SUBSCRIBE", channel))

    # --- asking until there is an answer ---

    async def _ask_at_length(self, request: _Request, asked: Where, answers: list[Any]) -> list[Any]:
        """The long way: connect, find the nodes, load scripts, wait and repeat what has no good answer yet."""
        loop = asyncio.get_running_loop()
        patience_s = GIVE_UP_S if self.give_up_s is None else self.give_up_s
        give_up_at = loop.time() + patience_s
        self._read(request, asked, request.open(), answers)
        while open_ones := request.open():
            if loop.time() > give_up_at:
                raise StoreUnavailable(
                    f"Redis at {self.address.where} gave no good answer for {patience_s:g} s "
                    f"(last: {request.trouble}); is it running and reachable?"
                )
            if request.must_pause or request.redirections > REDIRECTIONS_MAX:
                await asyncio.sleep(BACKOFF_S[min(request.pauses, len(BACKOFF_S) - 1)])
                request.pauses += 1
                request.must_pause, request.redirections = False, 0
            if self._lost_track:
                await self._learn()
            groups: dict[Where, list[int]] = {}
            for index in open_ones:
                groups.setdefault(request.asking.get(index) or self._where(request, index), []).append(index)
            await asyncio.gather(*(self._ask_one(request, where, some) for where, some in groups.items()))
        return [request.settled[index] for index in range(len(request.commands))]

    def _where(self, request: _Request, index: int) -> Where:
        return request.at or (self.slots.node_of(request.commands[index]) if self.slots else None)

    async def _ask_one(self, request: _Request, where: Where, indices: list[int]) -> None:
        """Ask one node for the answers that it has to give."""
        asking = [request.asking.pop(index, None) is not None for index in indices]
        sent = [(pack("ASKING") if ask else b"") + request.commands[i] for i, ask in zip(indices, asking, strict=True)]
        try:
            link = await self._connected(where)
            if where in request.unloaded:
                await self._ok(link, where, *(pack("SCRIPT", "LOAD", script.source) for script in self._scripts))
                request.unloaded.discard(where)
            answers = iter(await link.request(b"".join(sent), len(sent) + sum(asking), request.text))
        except OSError as error:
            request.trouble, request.must_pause = _words(error), True
            self._lost_track = self.slots is not None
            return
        told = []
        for ask in asking:
            if ask:
                next(answers)
            told.append(next(answers))
        self._read(request, where, indices, told)

    def _read(self, request: _Request, asked: Where, indices: Sequence[int], answers: Sequence[Any]) -> None:
        """Sort answers: settled, to be asked again, or raised."""
        for index, answer in zip(indices, answers, strict=False):
            if not isinstance(answer, hiredis.ReplyError):
                request.settled[index] = answer
                continue
            request.trouble = str(answer)
            match request.trouble.partition(" ")[0]:
                case "NOSCRIPT":
                    request.unloaded.add(asked)
                case "MOVED":
                    self._moved(*redirection(request.trouble, self._node_at(asked)))
                    request.redirections += 1
                case "ASK":
                    request.asking[index] = redirection(request.trouble, self._node_at(asked))[1]
                    request.redirections += 1
                case _ if request.trouble.startswith(_HEALS):
                    request.must_pause = True
                    self._lost_track = self.slots is not None
                    if request.trouble.startswith(("READONLY", "MASTERDOWN")):
                        self._leave(asked)
                case _:
                    raise self._fault(request.trouble, asked)

    # --- where things are ---

    def _node_at(self, where: Where) -> Node:
        nodes = self.address.nodes
        return where or (nodes[self._first % len(nodes)] if nodes else Node("", 0))

    def _address_of(self, where: Where) -> Address:
        return self.address.at(where) if where else self.address

    def _moved(self, slot: int, node: Node) -> None:
        self.slots = self.slots or SlotMap()
        self.slots.move(slot, node)
        self._lost_track = True  # where one slot has moved, others have

    def _leave(self, where: Where) -> None:
        """This server takes no writes: the name may lead to another one by now, or the next of the names does."""
        link = self._links.pop(where, None)
        if link is not None:
            link.close()
        if where is None:
            self._first += 1

    async def _learn(self) -> None:
        """Ask whoever answers which node has which slots; those with an open connection first."""
        async with self._learning:
            if not self._lost_track or self.slots is None:
                return
            known: list[Where] = [*self.slots.nodes, None]
            for where in sorted(known, key=lambda node: node not in self._links or self._links[node].closed):
                try:
                    link = await self._connected(where)
                    [answer] = await link.request(pack("CLUSTER", "SLOTS"), 1)
                except OSError:
                    continue
                if isinstance(answer, list):
                    self.slots = SlotMap.of_answer(answer, self._node_at(where))
                    self._lost_track = False
                    return

    # --- connections ---

    async def _connected(self, where: Where) -> Link:
        loop = asyncio.get_running_loop()
        if self._loop is not loop:
            self._loop = loop
            self._links.clear()
            self._locks.clear()
            self._learning = asyncio.Lock()
        async with self._locks[where]:
            link = self._links.get(where)
            if link is None or link.closed:
                link = self._links[where] = await self._connect(where)
            return link

    async def _connect(self, where: Where, on_message: Callable[[], None] | None = None, *first: bytes) -> Link:
        loop = asyncio.get_running_loop()
        at = self.address
        async with asyncio.timeout(CONNECT_S):
            if at.path:
                _, link = await loop.create_unix_connection(lambda: Link(loop, on_message), at.path)
            else:
                node = self._node_at(where)
                try:
                    _, link = await loop.create_connection(lambda: Link(loop, on_message), *node, ssl=at.tls)
                except ssl.SSLCertVerificationError as error:
                    raise CallerError(
                        f"Redis at {at.where} has a certificate that is not trusted here ({error.verify_message}); "
                        f"name its authority in the URL, ?ssl_ca_certs=/path/to/ca.pem"
                    ) from None
                except OSError:
                    self._first += where is None
                    raise
            greeting = [pack("CLIENT", "SETNAME", "understudy")]
            if at.password:
                greeting.insert(0, pack("AUTH", *filter(None, (at.username, at.password))))
            if at.db:
                greeting.append(pack("SELECT", at.db))
            try:
                await self._ok(link, where, *greeting, *first)
                if on_message is None:  # it may write
                    await begin_anew(link)
            except BaseException:
                link.close()
                raise
        return link

    async def _ok(self, link: Link, where: Where, *commands: bytes) -> None:
        for answer in await link.request(b"".join(commands), len(commands)):
            if isinstance(answer, hiredis.ReplyError):
                if str(answer).startswith(_HEALS):
                    raise ConnectionError(str(answer))
                raise self._fault(str(answer), where)

    def _fault(self, answer: str, asked: Where) -> Exception:
        """Whose fault an error is that will not pass by itself."""
        code, where = answer.partition(" ")[0], self._address_of(asked).where
        if code in _REMEDIES:
            return StoreUnavailable(f"Redis at {where} refuses to write, {_REMEDIES[code]} ({answer})")
        user = self.address.username or "default"
        if refused := _REFUSED.match(answer):
            return CallerError(
                f"Redis at {where} denies user {user!r} what the store needs ({answer}); give it: "
                f"`redis-cli ACL SETUSER {user} +{refused[1]}`"
            )
        if answer.startswith(_DENIED):
            return CallerError(
                f"Redis at {where} denies access to user {user!r}: {answer}; "
                f"put the right user and password into the URL, redis://user:password@host:port/0"
            )
        if answer.startswith("ERR SELECT is not allowed in cluster mode"):
            return CallerError(
                f"Redis at {where} is a node of a cluster, which has database 0 only; end the URL with /0"
            )
        if answer.startswith("ERR DB index is out of range"):
            return CallerError(
                f"Redis at {where} has no database {self.address.db}; end the URL with a smaller number, "
                f"or raise `databases`"
            )
        return AssertionError(f"Redis refused a command of the store: {answer}")


def _words(error: OSError) -> str:
    return str(error) or type(error).__name__
