"""Where sandboxed calls are made from in these tests: each tier, from a worker that is root and one that is not."""

import base64
import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import cloudpickle
from escape import attempts, callers, ends, file_attempts, tools
from escape.workers import USERS, Raised, Worker, hand_over

from support.waiting import wait_until
from understudy.actors.outcome import Outcome, ToolCode
from understudy.policies.profile import Limits, Profile

NOTHING = Profile()
BY_VALUE = (attempts, ends, file_attempts, callers, tools)


@dataclasses.dataclass(frozen=True)
class Place:
    """A tier, tried from one worker; `folder` is one that the worker's user owns, for this test."""

    tier: str
    worker: Worker
    folder: Path

    def outcome(self, function: Callable[..., Any], profile: Profile = NOTHING, /, **args: Any) -> Outcome:
        return self.answer(self.begin(function, profile, **args))

    def tried(self, function: Callable[..., Any], profile: Profile = NOTHING, /, **args: Any) -> Any:
        """What an attempt that ends by itself says of how far it got."""
        outcome = self.outcome(function, profile, **args)
        assert outcome.kind == "ok", outcome
        return outcome.value

    def referred(self, ref: str, /, **args: Any) -> Outcome:
        return self.answer(self._send(ToolCode(ref=ref), NOTHING, args))

    def in_workspace(self, function: Callable[..., Any], profile: Profile, files: str, /, **args: Any) -> Outcome:
        """Called with these files, of which what changes is kept."""
        return self.answer(self._send(by_value(function), profile, args, files=files))

    def begin(self, function: Callable[..., Any], profile: Profile = NOTHING, /, **args: Any) -> int:
        return self._send(by_value(function), profile, args)

    def running(self, function: Callable[..., Any], token: str, /, **args: Any) -> int:
        """Begin a call that starts a process with this argument; returns when it is there. What runs in gVisor is no
        process of the host's: there it makes a file, in a folder that it is granted."""
        if self.tier != "gvisor":
            call = self.begin(function, token=token, **args)
            wait_until(lambda: processes_with(token), 20, "the tool to run")
            return call
        self.hand_over()
        mark = self.folder / token
        call = self.begin(function, Profile(write=(str(self.folder),)), token=token, mark=str(mark), **args)
        wait_until(mark.exists, 20, "the tool to run")
        return call

    def cancelled(self, after: int, function: Callable[..., Any], /, **args: Any) -> str:
        """What a call raises that is cancelled after so many turns of the loop."""
        number = self._send(by_value(function), NOTHING, args, cancel_after=after)
        return str(self.worker.answer(number).get("raised"))

    def _send(self, code: ToolCode, profile: Profile, args: dict[str, Any], **more: Any) -> int:
        blob = base64.b64encode(code.blob).decode()
        told = {**dataclasses.asdict(profile), "tier": self.tier}
        return self.worker.send("call", tier=self.tier, ref=code.ref, blob=blob, args=args, profile=told, **more)

    def answer(self, number: int) -> Outcome:
        answer = self.worker.answer(number)
        if "raised" in answer:
            raise Raised(f"{answer['raised']}: {answer.get('words')}")
        return Outcome(**answer["outcome"])

    def answers(self, numbers: Sequence[int]) -> list[Outcome]:
        return [self.answer(number) for number in numbers]

    def shown_below(self, folder: str) -> list[str]:
        """What of a folder a sandbox has to show, because the interpreter or this very clone lies in it."""
        places = [Path(place) for place in self.worker.ask("shown")["places"]]
        return sorted({place.relative_to(folder).parts[0] for place in places if place.is_relative_to(folder)})

    @property
    def hidden(self) -> str:
        """How a tool is told that it cannot have a file: it is not there, or, without mounts, closed."""
        return "EACCES" if self.tier == "landlock" else "ENOENT"

    @property
    def unwritable(self) -> tuple[str, ...]:
        """gVisor asks for rights first, if they are not the own user's."""
        words = {"landlock": ("EACCES",), "gvisor": ("EACCES", "EROFS")}
        return words.get(self.tier, ("EROFS",))

    def hand_over(self) -> None:
        """Give all in the folder to the worker's user."""
        for path in (self.folder, *self.folder.rglob("*")):
            hand_over(path, self.worker.user)

    def file(self, name: str, text: str = "", mode: int = 0o666) -> Path:
        """A file of the worker's user."""
        path = self.folder / name
        path.write_text(text)
        path.chmod(mode)
        hand_over(path, self.worker.user)
        return path


def by_value(function: object) -> ToolCode:
    for module in BY_VALUE:
        cloudpickle.register_pickle_by_value(module)
    try:
        return ToolCode(blob=cloudpickle.dumps(function))
    finally:
        for module in BY_VALUE:
            cloudpickle.unregister_pickle_by_value(module)


def limited(**limits: Any) -> Profile:
    return Profile(limits=Limits(**limits))


def processes_with(*wanted: str, within: bool = False) -> list[str]:
    """Living processes of the whole host that have these arguments, or (within) this text in their command line."""
    found = []
    for proc in Path("/proc").iterdir():
        if proc.name.isdigit():
            try:
                line = (proc / "cmdline").read_text(errors="replace")
            except OSError:
                continue
            if all(text in (line if within else line.split("\0")) for text in wanted):
                found.append(proc.name)
    return found


def places_of(tiers: Sequence[str]) -> list[tuple[str, str]]:
    return [(tier, user) for tier in tiers for user in USERS]


AGAINST_THE_KERNEL = {"test_escape", "test_beyond"}


def is_on_demand(tier: str, user: str, file: str) -> bool:
    """Tried with `make soak`: in gVisor a call takes half a second. What the tests always see of it is what is ours
    (grants, folders, ends); and with one worker, as it is nobody who starts runsc where the worker is root, too."""
    return tier == "gvisor" and (file in AGAINST_THE_KERNEL or (user == "unprivileged" and len(USERS) > 1))
