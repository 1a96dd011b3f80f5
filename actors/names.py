"""A name that somebody gives (a key, a thread, a label, a message's id) is a short text that every store can hold.

It is refused where it is given, on every store alike: Postgres holds no NUL and indexes no long text, and a lone
surrogate is no text anywhere, so what SQLite took could not be moved to another store.
"""

from collections.abc import Mapping

from understudy.actors.errors import CallerError

NAME_BYTES_MAX = 1000
"""Two of these fit into one entry of a Postgres index."""
LABELS_MAX = 100


def check_name(what: str, name: str) -> None:
    """Raises CallerError that names `what`."""
    if not isinstance(name, str):
        raise CallerError(f"{what} is {name!r:.80}, and has to be a text: write {str(name)!r:.80}")
    if "\0" in name or name.encode(errors="ignore").decode() != name:
        raise CallerError(f"{what} {name!r:.80} has a NUL or a lone surrogate, which is no text for every store")
    size = len(name.encode())
    if size > NAME_BYTES_MAX:
        raise CallerError(
            f"{what} {name!r:.80} has {size} bytes, and {NAME_BYTES_MAX} is the limit; use a digest of it"
        )


def check_labels(labels: Mapping[str, str]) -> None:
    """Raises CallerError that names the label."""
    if len(labels) > LABELS_MAX:
        raise CallerError(f"a run has at most {LABELS_MAX} labels, not {len(labels)}; large things belong in its input")
    for name, value in labels.items():
        check_name("the label", name)
        check_name(f"the value of label {name!r:.80},", value)
