"""Trust: the code that a run or an export may name, which is installed tasks and this user's own.

A run says by text where its task is (``file.py:function``), and to export from it that code is executed. A
folder that came from somebody else could name any code. So the text is signed with a key that stays in the
user's data folder; one without this signature is only followed when the user himself says so. Exports carry
none: they are made to be passed on.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
from importlib.metadata import entry_points
from pathlib import Path

KEY_BYTES = 32
GROUP = "netcarve.tasks"


def known_tasks() -> dict[str, str]:
    """Names of installed tasks, each with its ``module:function``."""
    return {point.name: point.value for point in entry_points(group=GROUP)}


def sign(spec: str) -> str | None:
    """Signature (hex) of a text that names code; ``None`` where no key can be kept."""
    key = _key()
    return None if key is None else _signature(key, spec)


def trusted(spec: str, signature: object = None) -> bool:
    """May the code be run that a file names? An installed task, or a text that this user signed.

    Where no key can be kept nothing was signed.
    """
    if spec in known_tasks():
        return True
    if not isinstance(signature, str) or (key := _key()) is None:
        return False
    return hmac.compare_digest(signature.encode("utf-8", "replace"), _signature(key, spec).encode())


def _signature(key: bytes, spec: str) -> str:
    # A module is looked for in the working folder: the same text means other code in another one.
    said = spec if Path(spec).is_absolute() else f"{spec} in {Path.cwd()}"
    return hmac.new(key, said.encode("utf-8", "surrogatepass"), hashlib.sha256).hexdigest()


def _key() -> bytes | None:
    """The user's key, made at the first need."""
    from platformdirs import user_data_path

    path = Path(user_data_path("netcarve")) / "key"
    try:
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            # Written whole under another name first: two processes may both be the first.
            new = path.with_name(f"key-{os.getpid()}-{secrets.token_hex(4)}")
            with open(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
                file.write(secrets.token_bytes(KEY_BYTES))
            try:
                os.link(new, path)
            except FileExistsError:
                pass
            finally:
                new.unlink()
        key = path.read_bytes()
    except OSError:
        return None
    return key if len(key) == KEY_BYTES else None
