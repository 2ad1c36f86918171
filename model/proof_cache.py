"""Cache of proofs: what was proven before, as small JSON files in the user's cache folder.

A proof holds for one graph, its weights and example, and the code that made and checks it. All of that is in
the fingerprint: of the user's modules also the attributes that are no tensors, and of the user's code every
imported module that is not an installed package, since their own forward is part of what is proven. Set
``NETCARVE_PROOF_CACHE=0`` to prove anew each time.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import pickle
import sys
import sysconfig
import tempfile
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from .capture import Captured

_PACKAGE = __name__.partition(".")[0]  # other folders of netcarve have no part in a proof

MOST = 500  # proofs kept; the oldest go

log = logging.getLogger(__name__)


class ProofCache:
    """Facts about one captured model, by name. What cannot be read or written is as if never kept.

    Args:
        folder: by default ``proofs`` in netcarve's folder of the user's cache.
    """

    def __init__(self, captured: Captured, *, folder: Path | None = None) -> None:
        self._path: Path | None = None
        if os.environ.get("NETCARVE_PROOF_CACHE", "1") != "0":
            self._path = (folder or _folder()) / f"{fingerprint(captured)}.json"

    def once(self, name: str, find: Callable[[], Any]) -> Any:
        """What was kept under ``name``, else what ``find()`` gives (plain JSON), which is then kept."""
        held = self._read()
        if name not in held:
            held[name] = find()
            self._keep(held)
        return held[name]

    def _keep(self, held: dict[str, Any]) -> None:
        """Written whole or not at all, since others may be reading."""
        if self._path is None:
            return
        with suppress(OSError):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile(
                "w", dir=self._path.parent, suffix=".part", delete=False, encoding="utf-8"
            ) as file:
                json.dump(held, file)
            os.replace(file.name, self._path)
            _forget_oldest(self._path.parent)

    def _read(self) -> dict[str, Any]:
        if self._path is None:
            return {}
        try:
            held = json.loads(self._path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return {}
        except (OSError, ValueError) as error:
            log.warning("the kept proof %s cannot be read (%s); proving again", self._path, error)
            return {}
        return held if isinstance(held, dict) else {}


def fingerprint(captured: Captured) -> str:
    """SHA-256 (hex) of all that a proof rests on."""
    digest = hashlib.sha256(f"{torch.__version__}|{sys.version_info[:2]}|{_code(captured.source)}|".encode())
    digest.update(f"{type(captured.source).__qualname__}|{captured.source!r}|".encode())
    for module in captured.source.modules():
        digest.update(_settings(module))
    for node in captured.graph_module.graph.nodes:
        digest.update(f"{node.format_node()}|{node.args}|{node.kwargs}|".encode())
    tensors = {**captured.program.state_dict, **captured.program.constants}
    for name, tensor in sorted(tensors.items()):
        _add(digest, name, tensor)
    for leaf in pytree.tree_leaves((captured.args, captured.kwargs)):
        _add(digest, "example", leaf)
    return digest.hexdigest()


def _add(digest: hashlib._Hash, name: str, value: object) -> None:
    if isinstance(value, torch.Tensor):
        digest.update(f"{name}|{value.dtype}|{tuple(value.shape)}|".encode())
        raw = value.detach().cpu().contiguous().reshape(-1)
        digest.update(raw.view(torch.uint8).numpy().data if raw.numel() else b"")
    else:
        digest.update(f"{name}|{value!r}|".encode())


def _settings(module: nn.Module) -> bytes:
    """Attributes of a module but its tensors and children: forward may branch on any of them.

    One that cannot be pickled is told by its ``repr``, which mostly differs from process to process: such a
    model is then proven anew.
    """
    held = {k: sorted(map(repr, v)) if isinstance(v, set) else v for k, v in module.__dict__.items()}
    for tensors in ("_parameters", "_buffers", "_modules"):
        held[tensors] = list(held.get(tensors, ()))
    try:
        return pickle.dumps(held)
    except Exception:
        return b"".join(_setting(name, value) for name, value in held.items())


def _setting(name: str, value: object) -> bytes:
    try:
        return name.encode() + pickle.dumps(value)
    except Exception:
        return f"{name} {value!r}".encode()


def _code(model: nn.Module) -> str:
    """Hash of the sources of `spaces`, of all imported modules that are not installed packages, and of the
    versions of the packages that the model's classes come from."""
    roots = {type(m).__module__.partition(".")[0] for m in model.modules()}
    facts = [f"{r} {getattr(sys.modules.get(r), '__version__', '')}" for r in sorted(roots)]
    installed = tuple(
        {sysconfig.get_path(kind) for kind in ("stdlib", "platstdlib", "purelib", "platlib")} - {None}
    )
    root = Path(__file__).parents[1]
    paths = {str(path) for room in ("model", "spaces") for path in (root / room).rglob("*.py")}
    for name, module in list(sys.modules.items()):
        path = getattr(module, "__file__", None)
        if path and not path.startswith(installed) and name.partition(".")[0] != _PACKAGE:
            paths.add(path)
    for path in sorted(paths):
        with suppress(OSError):
            facts.append(_file_hash(path, os.stat(path).st_mtime_ns))
    return hashlib.sha256("|".join(facts).encode()).hexdigest()


def _forget_oldest(folder: Path) -> None:
    held = sorted(folder.glob("*.json"), key=lambda path: path.stat().st_mtime)
    for path in held[:-MOST] if len(held) > MOST else ():
        path.unlink(missing_ok=True)


@cache
def _file_hash(path: str, changed: int) -> str:
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def _folder() -> Path:
    import platformdirs

    return Path(platformdirs.user_cache_dir("netcarve")) / "proofs"
