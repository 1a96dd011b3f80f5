"""Reads a command line as every shell reads its plainest part, and says of the rest that it cannot be read.

What is read: words, quotes, backslashes, and pipes between such commands. What is not: anything that stands for text
that is not there (substitution, variables, globs, braces, `~`), that starts or joins commands in another way (`;`, `&`,
`&&`, redirections, assignments, reserved words), and programs whose operands are commands again (`sh -c`, `env`,
`xargs`). Those are where a rule about `rm` meets a line that never says `rm`.

The words are what a rule judges; the wall is the sandbox.
"""

import re
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Final

LINE_MAX = 8192
"""Characters of a command line; a longer one is not read."""


class Unreadable(ValueError):
    """A command line that is not plain. Says which part, and why."""


class Command:
    """One program with its words, as it would be started.

    Attributes:
        flags: words that begin with `-`, before `--`, without `=value`.
        operands: all other words. What a flag takes as its value is one, too: only the program knows which.
        letters: each flag as it is written, and each letter of a cluster on its own: `-rf` is also `-r` and `-f`.
    """

    __slots__ = ("flags", "letters", "operands", "program", "words")

    def __init__(self, words: tuple[str, ...]) -> None:
        flags: list[str] = []
        operands: list[str] = []
        letters: list[str] = []
        rest = iter(words[1:])
        for word in rest:
            if word == "--":
                operands.extend(rest)
            elif word[:2] == "--":
                flags.append(word.partition("=")[0])
            elif word[:1] == "-" and word != "-":
                flags.append(word)
                letters += [f"-{letter}" for letter in word[1:]]
            else:
                operands.append(word)
        self.words = words
        self.program = words[0]
        self.flags = tuple(flags)
        self.operands = tuple(operands)
        self.letters = frozenset((*flags, *letters))


def read_line(text: str) -> tuple[Command, ...]:
    """The commands of a pipeline, first to last. Raises Unreadable."""
    if len(text) > LINE_MAX:
        raise Unreadable(f"it has {len(text)} characters, and {LINE_MAX} are the most that is read")
    if _PLAINEST.fullmatch(text):
        return (_command(text.split(), typed=True),)  # as most are: this saves four fifths of the time
    commands: list[list[str]] = [[]]
    for token in _tokens(text):
        if token is None:
            commands.append([])
        else:
            commands[-1].append(token)
    return tuple(_command(words, typed=True) for words in commands)


def read_words(words: Sequence[object]) -> tuple[Command, ...]:
    """The one command of a list of words, which no shell reads. Raises Unreadable."""
    listed = [word for word in words if isinstance(word, str)]
    if len(listed) != len(words) or any("\0" in word for word in listed):
        raise Unreadable("a command in a list is made of texts, without NUL")
    if sum(map(len, listed)) > LINE_MAX:
        raise Unreadable(f"its words have more than {LINE_MAX} characters, the most that is read")
    return (_command(listed, typed=False),)


# --- words ---------------------------------------------------------------------------------------------------------

_PLAIN: Final = re.compile(r"[A-Za-z0-9_./:@%+,=^\]-]+")
"""What means itself outside of quotes; `=`, `~` and `#` are looked at where they stand."""
_WORD: Final = r"[A-Za-z0-9_./:@%+,^\]-][A-Za-z0-9_./:@%+,=^\]-]*+"
_PLAINEST: Final = re.compile(rf"[ \t]*+{_WORD}(?:[ \t]++{_WORD})*+[ \t]*+")
"""Nothing but words that mean themselves. Possessive, so that no line makes it try twice."""
_WHY: Final = {
    "$": "a variable or a substitution",
    "`": "a substitution",
    ";": "a second command",
    "&": "a second command",
    "<": "a redirection",
    ">": "a redirection",
    "(": "a subshell",
    ")": "a subshell",
    "{": "a group or a brace expansion",
    "}": "a group or a brace expansion",
    "*": "a glob that the shell expands",
    "?": "a glob that the shell expands",
    "[": "a glob that the shell expands",
    "~": "a home folder that the shell fills in",
    "#": "a comment",
    "!": "a negation or a place in the history",
    "\n": "a second line",
}


def _tokens(text: str) -> Iterable[str | None]:
    """Words; None where a pipe stands."""
    word: list[str] | None = None
    at = 0
    while at < len(text):
        letter = text[at]
        plain = _PLAIN.match(text, at)
        if plain:
            if word is None and letter == "=":
                raise Unreadable("a word begins with '=', which some shells expand")
            word = [*(word or ()), plain[0]]
            at = plain.end()
        elif letter in " \t":
            if word is not None:
                yield "".join(word)
                word = None
            at += 1
        elif letter == "|":
            if text[at + 1 : at + 2] in ("|", "&"):
                raise Unreadable(f"{text[at : at + 2]!r} joins commands")
            if word is not None:
                yield "".join(word)
                word = None
            yield None
            at += 1
        elif letter in "'\"":
            inner, at = _quoted(text, at)
            word = [*(word or ()), inner]
        elif letter == "\\":
            escaped = text[at + 1 : at + 2]
            if not escaped.isprintable() or not escaped:
                raise Unreadable("a backslash before the end, or before what cannot be seen")
            word = [*(word or ()), escaped]
            at += 2
        elif letter in _WHY:
            raise Unreadable(f"{letter!r} is {_WHY[letter]}")
        elif letter.isprintable() and not letter.isspace():
            word = [*(word or ()), letter]
            at += 1
        else:
            raise Unreadable(f"{letter!r} cannot be seen, and shells differ about it")
    if word is not None:
        yield "".join(word)


def _quoted(text: str, at: int) -> tuple[str, int]:
    """What stands between quotes, and where it goes on behind them."""
    found: list[str] = []
    quote, at = text[at], at + 1
    while at < len(text):
        letter = text[at]
        if letter == quote:
            return "".join(found), at + 1
        if not letter.isprintable():
            raise Unreadable(f"{letter!r} in quotes cannot be seen, and shells differ about it")
        if quote == '"' and letter in "$`!":
            raise Unreadable(f"{letter!r} in double quotes is {_WHY[letter]}")
        if quote == '"' and letter == "\\" and text[at + 1 : at + 2] in ("$", "`", '"', "\\"):
            at += 1
            letter = text[at]
        found.append(letter)
        at += 1
    raise Unreadable(f"a quote {quote} is not closed")


# --- commands ------------------------------------------------------------------------------------------------------

_ASSIGNMENT: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\+?=")
_SHELL_WORDS: Final = "if then else elif fi do done case esac while until for in function select time coproc [[ ]]"
_STARTERS: Final = """
    eval exec source . command builtin trap alias unalias hash enable env xargs parallel sudo doas su runuser setpriv
    nohup nice ionice chrt taskset timeout setsid stdbuf unbuffer script watch flock strace ltrace gdb chroot unshare
    nsenter bwrap firejail busybox toybox sh bash rbash dash ash zsh ksh mksh fish csh tcsh pwsh ssh rsh at batch
    crontab systemd-run entr make gmake awk gawk mawk nawk ed ex vi vim nvim emacs expect screen tmux rlwrap fakeroot
    proot setarch numactl cgexec pkexec sg start-stop-daemon dbus-run-session valgrind perf npx bunx uvx pipx
"""
_RESERVED: Final = frozenset(_SHELL_WORDS.split())
_LAUNCHERS: Final = frozenset(_STARTERS.split())
"""Programs that start what their operands, or files of theirs, say."""
_INTERPRETERS: Final = re.compile(r"(?:python|pypy|perl|ruby|node|nodejs|deno|bun|php|lua|luajit|tclsh|Rscript)[0-9.]*")
_CODE_FLAGS: Final = frozenset(("-c", "-e", "-E", "-r", "-p", "--eval", "--print", "--run"))
_STARTING_FLAGS: Final = {
    "find": ("-exec", "-execdir", "-ok", "-okdir"),
    "git": ("--config-env", "--exec-path", "--upload-pack", "--receive-pack"),
    "git grep": ("-O", "--open-files-in-pager"),
    "git rebase": ("-x", "--exec"),
    "tar": (
        "--to-command",
        "--checkpoint-action",
        "--use-compress-program",
        "--rsh-command",
        "--info-script",
        "-I",
        "-F",
    ),
    "rsync": ("-e", "--rsh", "--rsync-path"),
    "scp": ("-S", "-o"),
    "sftp": ("-S", "-o"),
    "sort": ("--compress-program",),
    "man": ("-P", "--pager"),
    "zip": ("-TT", "--unzip-command"),
}
"""Flags by which programs that are harmless without start what the next word says."""
_STARTING_OPERANDS: Final = {
    "git": ("bisect", "submodule", "filter-branch", "difftool", "mergetool"),
    "deno": ("eval", "run", "task"),
    "bun": ("x", "run"),
    "uv": ("run", "tool"),
}
_WITH_SUBCOMMANDS: Final = frozenset(program.split()[0] for program in _STARTING_FLAGS if " " in program)
_AT_TIMES: Final = frozenset((*_STARTING_FLAGS, *_STARTING_OPERANDS))


def basename(program: str) -> str:
    """The last part: `/usr/bin/rm` and `./rm` are an `rm`."""
    return program.rpartition("/")[2]


def is_launcher(name: str) -> bool:
    """Whether a program starts what its operands say, so that no line with it is read."""
    return name in _LAUNCHERS


def _command(words: Sequence[str], typed: bool) -> Command:
    """Raises Unreadable where the words start something that they do not name."""
    if not words or not words[0]:
        raise Unreadable("a command without a program")
    command, name = Command(tuple(words)), basename(words[0])
    if typed and (_ASSIGNMENT.match(words[0]) or words[0] in _RESERVED):
        raise Unreadable(f"{words[0][:40]!r} is an assignment or a word of the shell's own")
    if is_launcher(name):
        raise Unreadable(f"{name!r} starts other commands")
    if _INTERPRETERS.fullmatch(name) and (command.letters & _CODE_FLAGS or command.operands[:1] in ((), ("-",))):
        raise Unreadable(f"{name!r} is given code in its arguments, or through its input")
    if name in _AT_TIMES:
        _starts_nothing(name, command)
    return command


def _starts_nothing(name: str, command: Command) -> None:
    """Raises Unreadable."""
    starting = _STARTING_FLAGS.get(name, ())
    if name in _WITH_SUBCOMMANDS:
        for operand in command.operands:
            starting += _STARTING_FLAGS.get(f"{name} {operand}", ())
    for flag in command.letters:
        if flag in starting or any(is_short_for(flag, each) for each in starting):
            raise Unreadable(f"{name!r} starts other commands here")
    if any(operand in _STARTING_OPERANDS.get(name, ()) for operand in command.operands):
        raise Unreadable(f"{name!r} starts other commands, or runs code, with these words")
    if name == "git" and any(word == "-c" and "." in after for word, after in pairwise(command.words)):
        raise Unreadable("'git' is given a setting, and some of them name commands")


def is_short_for(flag: str, whole: str) -> bool:
    """Whether a flag may stand for a longer one: most programs take `--forc` for `--force`."""
    return len(flag) > 2 and flag[:2] == "--" and whole.startswith(flag)
