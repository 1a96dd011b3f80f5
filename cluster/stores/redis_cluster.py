"""Which node of a Redis Cluster has which keys of the store: all keys bear the tag of a partition, and that decides.

A cluster is noticed by itself, from INFO or from a first MOVED. Its map is asked for again whenever an answer, or
silence, shows that it is old.
"""

import binascii
from collections.abc import Sequence
from typing import Any

from understudy.actors.records import PARTITIONS
from understudy.cluster.stores.redis_address import Node

SLOTS = 16_384
_TAGS = tuple(b"p%02x" % partition for partition in range(PARTITIONS))
_TAG_OF_SLOT = {binascii.crc_hqx(tag, 0) % SLOTS: tag for tag in _TAGS}  # CRC16 as Redis takes it
assert len(_TAG_OF_SLOT) == PARTITIONS


class SlotMap:
    """Owners of partitions, by tag."""

    def __init__(self) -> None:
        self._owners: dict[bytes, Node] = {}

    @classmethod
    def of_answer(cls, answer: Sequence[Any], asked: Node) -> "SlotMap":
        """From CLUSTER SLOTS. A node that does not know its own name is the one that was asked."""
        found = cls()
        for first, last, (host, port, *_), *_replicas in answer:
            node = Node(host if host and host != "?" else asked.host, int(port))
            for slot, tag in _TAG_OF_SLOT.items():
                if int(first) <= slot <= int(last):
                    found._owners[tag] = node
        return found

    def node_of(self, command: bytes) -> Node | None:
        """Who has the keys of a packed command; None: it has none, or nobody is known to have them.

        The first key is the first place where a tag can stand: before it there are names and numbers only.
        """
        start = command.find(b"{p") + 1
        return self._owners.get(command[start : start + 3])

    def move(self, slot: int, node: Node) -> None:
        self._owners[_TAG_OF_SLOT[slot]] = node

    @property
    def nodes(self) -> list[Node]:
        return sorted(set(self._owners.values()))


def redirection(answer: str, asked: Node) -> tuple[int, Node]:
    """Slot and node of `MOVED 3999 127.0.0.1:6381` or `ASK ...`. An empty host is the one that was asked."""
    _, slot, where = answer.split(" ")[:3]
    host, _, port = where.rpartition(":")
    return int(slot), Node(host or asked.host, int(port))
