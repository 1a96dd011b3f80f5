"""What a condition may ask of a command line: which program, which operands, which flags.

Who gains by a yes is read strictly, who loses by it broadly. For an allow rule, every command of a pipeline has to fit,
a program is the very word (`git`, not `./git`), and operands are counted from the first. For an ask or deny rule one
command is enough, `/bin/rm` is an `rm`, `-rf` is an `-f`, and operands may begin anywhere (`git -C /srv push` pushes).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fnmatch import translate
from functools import cache
from re import Pattern, compile
from typing import Any

from understudy.policies.argv import Command, basename, read_line, read_words

REST = "**"
"""As the last operand: any number of others."""


@dataclass(frozen=True)
class CommandTest:
    """Names and globs, as they stand in a rule. What is empty, or None, is not asked."""

    program: tuple[str, ...] = ()
    operands: tuple[str, ...] | None = None
    """One glob for each place."""
    any_operand: tuple[str, ...] = ()
    """One operand fits one of these."""
    only_flags: tuple[str, ...] | None = None
    """No flag is there but these."""
    any_flag: tuple[str, ...] = ()
    """One of these is there."""


def compiled(test: CommandTest, allowing: bool) -> Callable[[Any], bool]:
    """A function of a command line (text, or a list of words). It raises `argv.Unreadable`."""

    def fits(value: Any) -> bool:
        commands = read_line(value) if isinstance(value, str) else read_words(value)
        return (all if allowing else any)(_fits(command, test, allowing) for command in commands)

    return fits


def _fits(command: Command, test: CommandTest, allowing: bool) -> bool:
    if test.program and not _any(test.program, _names(command, allowing)):
        return False
    if test.operands is not None and not _operands(test.operands, command.operands, allowing):
        return False
    if test.any_operand and not _any(test.any_operand, command.operands):
        return False
    if test.any_flag and not _any(test.any_flag, command.letters):
        return False
    return test.only_flags is None or all(_known(flag, test.only_flags) for flag in command.flags)


def _names(command: Command, allowing: bool) -> Sequence[str]:
    return (command.program,) if allowing else (command.program, basename(command.program))


def _operands(globs: Sequence[str], words: Sequence[str], allowing: bool) -> bool:
    starts = (0,) if allowing else range(len(words) + 1)
    return any(_in_place(globs, words[start:]) for start in starts)


def _in_place(globs: Sequence[str], words: Sequence[str]) -> bool:
    if globs[-1:] == (REST,):
        globs = globs[:-1]
        words = words[: len(globs)]
    return len(globs) == len(words) and all(_glob(glob).match(word) for glob, word in zip(globs, words, strict=True))


def _known(flag: str, globs: Sequence[str]) -> bool:
    """A cluster is known when each of its letters is: `-rf` where `-r` and `-f` are."""
    if _any(globs, (flag,)):
        return True
    return flag[:2] != "--" and all(_any(globs, (f"-{letter}",)) for letter in flag[1:])


def _any(globs: Sequence[str], words: Any) -> bool:
    return any(_glob(glob).match(word) for glob in globs for word in words)


@cache
def _glob(glob: str) -> Pattern[str]:
    """Globs come from rules, and those are bounded."""
    return compile(translate(glob))
