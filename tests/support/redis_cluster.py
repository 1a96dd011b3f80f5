"""A real Redis Cluster on loopback: masters that share the slots, each a server of its own that may be killed."""

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import redis

from support.processes import free_port
from support.servers import RedisServer
from support.waiting import wait_until

SLOTS = 16_384
NODE_TIMEOUT_MS = 1500
"""After so long without a sign a node counts as gone: its slots fail, or its replica takes over."""


class ClusterNode(RedisServer):
    def __init__(self) -> None:
        super().__init__()
        self.bus_port = free_port()

    def command(self) -> Sequence[str]:
        # fmt: off
        return [
            *super().command(), "--cluster-enabled", "yes", "--cluster-port", str(self.bus_port),
            "--cluster-node-timeout", str(NODE_TIMEOUT_MS), "--cluster-announce-ip", "127.0.0.1",
        ]
        # fmt: on

    def ask(self, *words: str | int) -> Any:
        client: Any = self.client()
        return client.execute_command(*words)

    def state(self) -> dict[str, str]:
        text = str(self.ask("CLUSTER", "INFO"))
        return dict(line.split(":", 1) for line in text.split() if ":" in line)

    @property
    def node_id(self) -> str:
        return str(self.ask("CLUSTER", "MYID"))

    def meet(self, other: "ClusterNode") -> None:
        self.ask("CLUSTER", "MEET", "127.0.0.1", other.port, other.bus_port)


class RedisCluster:
    """As a context manager it is stopped and its data removed at the end."""

    def __init__(self, masters: int = 3) -> None:
        self.nodes = [ClusterNode() for _ in range(masters)]
        self._with = contextlib.ExitStack()
        self._made = False

    @property
    def url(self) -> str:
        return self.nodes[0].url

    def start(self) -> "RedisCluster":
        """Start the nodes that do not run, and wait until all slots are served."""
        for node in self.nodes:
            node.start()
        if not self._made:
            self._share_slots()
            self._made = True
        self.wait_until_whole()
        return self

    def wait_until_whole(self) -> None:
        def whole() -> bool:
            try:
                states = [node.state() for node in self.nodes if node.is_running]
            except redis.RedisError:
                return False
            return all(
                state["cluster_state"] == "ok" and state["cluster_known_nodes"] == str(len(self.nodes))
                for state in states
            )

        wait_until(whole, 30, "all slots to be served")

    def add_replica(self, of: int) -> ClusterNode:
        """A replica of the master with this index, in step with it."""
        master, replica = self.nodes[of], self._with.enter_context(ClusterNode())
        self.nodes.append(replica)
        replica.meet(master)
        master_id = master.node_id

        def replicates() -> bool:
            try:
                replica.ask("CLUSTER", "REPLICATE", master_id)
            except redis.RedisError:  # it has not heard of its master yet
                return False
            return True

        wait_until(replicates, 10, "the replica to know its master")
        wait_until(lambda: replica.client().info("replication").get("master_link_status") == "up", 20, "replication")
        self.wait_until_whole()
        return replica

    def flush(self) -> None:
        for node in self.nodes:
            node.flush()

    def keys(self) -> list[str]:
        return [str(key) for node in self.nodes for key in node.client().scan_iter(count=1000)]

    def owner_of(self, slot: int) -> ClusterNode:
        for first, last, (_, port, *_), *_ in self.nodes[0].ask("CLUSTER", "SLOTS"):
            if first <= slot <= last:
                return next(node for node in self.nodes if node.port == port)
        raise AssertionError(f"nobody has slot {slot}")

    def close(self) -> None:
        self._with.close()
        for node in self.nodes:
            node.close()

    def __enter__(self) -> "RedisCluster":
        try:
            return self.start()
        except BaseException:
            self.close()
            raise

    def __exit__(self, *_exc: object) -> None:
        self.close()

    def _share_slots(self) -> None:
        for index, (first, last) in enumerate(self._ranges()):
            node = self.nodes[index]
            node.ask("CLUSTER", "SET-CONFIG-EPOCH", index + 1)
            node.ask("CLUSTER", "ADDSLOTSRANGE", first, last)
        for node in self.nodes[1:]:
            node.meet(self.nodes[0])

    def _ranges(self) -> Iterator[tuple[int, int]]:
        share = SLOTS // len(self.nodes)
        for index in range(len(self.nodes)):
            last = SLOTS - 1 if index == len(self.nodes) - 1 else (index + 1) * share - 1
            yield index * share, last
