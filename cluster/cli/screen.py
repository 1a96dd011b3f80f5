"""What others wrote is shown, and steers no terminal: whatever is printed goes through here.

A tool's result, a run's label, an error may hold escapes that clear the screen, rename the window, overwrite the line
above, or turn the reading direction of a command that is to be typed. So each character that people cannot see stands
as U+FFFD, in tables, lines and tracebacks alike; and as `\\uXXXX` in JSON, which means the same to programs.
"""

import json
import re
import sys
import unicodedata
from collections.abc import Iterable
from typing import Any, Final

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment

_PLAIN: Final = re.compile(r"[ -~\n\t]*")
_WIDE: Final = 0x10000


def harmless(text: str) -> str:
    """The text without what would steer a terminal or mislead an eye; lines stay lines."""
    if _PLAIN.fullmatch(text):
        return text
    return "".join(char if _is_seen(char) else "\ufffd" for char in text)


def json_line(document: Any, indent: int | None = None) -> str:
    """The document as JSON that reads the same, whoever reads it: a program, or a terminal."""
    text = json.dumps(document, indent=indent, ensure_ascii=False, default=str)
    # Control characters below a blank are escaped by JSON itself; what is left stands inside of strings.
    return text if _PLAIN.fullmatch(text) else "".join(char if _is_seen(char) else _escaped(char) for char in text)


class Screen(Console):
    """Prints to a terminal or a file, all of it harmless, but for the colours that it puts in itself."""

    def __init__(self, file: Any, piped_width: int = 200) -> None:
        # Into a pipe nothing is cut: a table of 80 columns would lose what grep looks for.
        width = None if file.isatty() else piped_width
        super().__init__(file=file, width=width, highlight=False, markup=False, emoji=False, soft_wrap=False)

    def on_broken_pipe(self) -> None:
        """`understudy ps | head` is no failure. (Rich would exit with 1.)"""
        raise BrokenPipeError

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Everything comes by here, also what stands in a table, before its width is counted."""
        for segment in super().render(renderable, options):
            text = segment.text if segment.control else harmless(segment.text)
            yield segment if text is segment.text else Segment(text, segment.style)


def write_out(data: bytes) -> None:
    """To stdout: byte by byte into a file or a pipe, made harmless on a terminal."""
    if sys.stdout.isatty():
        sys.stdout.write(harmless(data.decode(errors="replace")))
    else:
        sys.stdout.flush()
        sys.stdout.buffer.write(data)
    sys.stdout.flush()


def _is_seen(char: str) -> bool:
    return char.isprintable() or char in "\n\t" or unicodedata.category(char) == "Zs"


def _escaped(char: str) -> str:
    code = ord(char)
    if code < _WIDE:
        return f"\\u{code:04x}"
    code -= _WIDE
    return f"\\u{0xD800 + (code >> 10):04x}\\u{0xDC00 + (code & 0x3FF):04x}"
