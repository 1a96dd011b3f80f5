"""Whose a store is: it belongs to the deployment that has served it first, which is told by its secret.

A cluster under another secret would take up the runs of the store, could open neither their policies nor their code,
and would fail them one after the other, also while the right one serves it. So it is refused when it starts.
"""

import hmac

from understudy.actors.documents import Overtaken
from understudy.actors.errors import CallerError
from understudy.actors.store import Store
from understudy.cluster.settings import Settings

SHELF = "deployment"
NAME = "secret"
_MARK = b"understudy deployment 1\0"


def mark_of(secret: bytes) -> bytes:
    """Tells a secret from every other one, and does not tell it."""
    return hmac.digest(secret, _MARK, "sha256").hex().encode()


async def take_into_service(store: Store, settings: Settings) -> None:
    """Note whose the store is, if nobody has. Raises CallerError: it is another deployment's."""
    mark = mark_of(settings.secret())
    try:
        await store.write_document(SHELF, NAME, mark, 0)
    except Overtaken as error:
        if error.found is None or error.found.data != mark:
            raise CallerError(
                f"the store {(await store.info()).where} is served under another secret than {settings.secret_path}, "
                f"and its runs would fail here; name the secret that belongs to it with UNDERSTUDY_SECRET_FILE, or "
                f"another store; if that secret is lost, `understudy store claim` puts this one in its place"
            ) from None


async def claim(store: Store, settings: Settings) -> bool:
    """From now on it belongs to this deployment; whether it was another one's."""
    mark, kept = mark_of(settings.secret()), await store.read_document(SHELF, NAME)
    if kept is None or kept.data != mark:
        await store.write_document(SHELF, NAME, mark, kept.version if kept else 0)
    return kept is not None and kept.data != mark
