"""What a condition may ask of a command line: which program, which operands, which flags.

Who gains by a yes is read strictly, who loses by it broadly. For an allow rule, every command of a pipeline has to fit,
a program is the very word (`git`, not `./git`), and operands are counted from the first. For an ask or deny rule one
command is enough, `/bin/rm` is an `rm`, `-rf` is an `-f`, `--forc` is a `--force`, and operands may begin anywhere
(`git -C /srv push` pushes).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fnmatch import translate
from re import compile
from typing import Any

from understudy.policies.argv import Command, basename, is_short_for, read_line, read_words

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
    ready = _Ready(test, allowing)

    def fits(value: Any) -> bool:
        commands = read_line(value) if isinstance(value, str) else read_words(value)
        if len(commands) == 1:
            return ready.fits(commands[0])
        return (all if allowing else any)(ready.fits(command) for command in commands)

    return fits


class _Ready:
    """A test, with its globs compiled."""

    def __init__(self, test: CommandTest, allowing: bool) -> None:
        self._allowing = allowing
        self._program = _any_of(test.program)
        self._any_operand = _any_of(test.any_operand)
        self._any_flag = _any_of(test.any_flag)
        self._flags = test.any_flag
        self._only_flags = None if test.only_flags is None else _any_of(test.only_flags) or _nothing
        operands = test.operands
        self._open = operands is not None and operands[-1:] == (REST,)
        self._operands = operands if operands is None else operands[:-1] if self._open else operands
        self._places = tuple(compile(translate(glob)).match for glob in self._operands or ())

    def fits(self, command: Command) -> bool:
        if self._program is not None and not self._is_program(command.program):
            return False
        if self._operands is not None and not self._in_place(command.operands):
            return False
        if self._any_operand is not None and not any(map(self._any_operand, command.operands)):
            return False
        if self._any_flag is not None and not any(map(self._has, command.letters)):
            return False
        return self._only_flags is None or all(map(self._is_known, command.flags))

    def _is_program(self, program: str) -> bool:
        assert self._program is not None
        found = self._program(program) or (not self._allowing and self._program(basename(program)))
        return bool(found)

    def _in_place(self, words: Sequence[str]) -> bool:
        wanted = len(self._places)
        for start in range(1 if self._allowing else len(words) + 1):
            rest = words[start : start + wanted] if self._open else words[start:]
            if len(rest) == wanted and all(match(word) for match, word in zip(self._places, rest, strict=True)):
                return True
        return False

    def _has(self, flag: str) -> bool:
        """Whether it is one that is asked for; for who loses by it, also where it may be short for one."""
        assert self._any_flag is not None
        if self._any_flag(flag):
            return True
        return not self._allowing and any(is_short_for(flag, each) for each in self._flags)

    def _is_known(self, flag: str) -> bool:
        """A cluster is known when each of its letters is: `-rf` where `-r` and `-f` are."""
        assert self._only_flags is not None
        if self._only_flags(flag):
            return True
        return flag[:2] != "--" and all(self._only_flags(f"-{letter}") for letter in flag[1:])


def _any_of(globs: Sequence[str]) -> Callable[[str], Any] | None:
    """Whether a word fits one of these; None: nothing is asked."""
    return compile("|".join(translate(glob) for glob in globs)).match if globs else None


def _nothing(word: str) -> None:
    """Fits no word."""
