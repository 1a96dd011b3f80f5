"""What calls of dead workers have left on this machine, counted by whoever ends and removes it. Pure."""

from dataclasses import astuple, dataclass


@dataclass(frozen=True)
class LeftOver:
    """All of it ended and removed, once it is counted."""

    processes: int = 0
    cgroups: int = 0
    folders: int = 0

    def __add__(self, other: "LeftOver") -> "LeftOver":
        return LeftOver(*map(sum, zip(astuple(self), astuple(other), strict=True)))

    def __bool__(self) -> bool:
        return any(astuple(self))

    def __str__(self) -> str:
        names = (("process", "processes"), ("cgroup", "cgroups"), ("folder", "folders"))
        counted = zip(astuple(self), names, strict=True)
        return ", ".join(f"{count} {one if count == 1 else many}" for count, (one, many) in counted if count)
