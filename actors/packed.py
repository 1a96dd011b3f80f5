"""Values as bytes, for a call that Ray carries: bytes it hands through, of other values it asks Python about every
object in them. Half a millisecond a call, of two.

Only for what comes from our own processes, as all that Ray carries does: who can write these bytes can run code.
"""

import pickle
from typing import Any


def pack(value: Any) -> bytes:
    """For `unpack`, in another process of this deployment."""
    return pickle.dumps(value, protocol=5)


def unpack(data: bytes) -> Any:
    """What was packed."""
    return pickle.loads(data)
