"""Set for every test: one thread, a cache folder of the tests' own, the markers."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, settings

# Before anything imports torch: tests run side by side, and threads that fight over cores make them slow.
for _variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ[_variable] = "1"

# Compiled files are kept: the tests start processes by the dozen, each would compile the package anew.
sys.dont_write_bytecode = False
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

# Processes that a test starts find the toy networks too.
os.environ["PYTHONPATH"] = os.pathsep.join(
    [str(Path(__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])]
)

# Their assertions say what was compared, as those of test files do.
pytest.register_assert_rewrite(
    "netcarve.testing", "netcarve.spaces.testing", "netcarve.model.operators.conformance"
)

from netcarve.spaces.testing import declare_torchvision_operators  # noqa: E402

declare_torchvision_operators()  # before anything imports torchvision, as timm and transformers do

# Files that take longest come first, so that no process works on one of them alone at the end.
_LONGEST = ("cli", "pools", "verify", "resume", "splits", "stages", "followed", "elastic_scoring", "serving")

_MARKERS = (
    "ray: starts real Ray workers, some seconds",
    "quick(*cases): the cases of a test that are not slow: ids, or parts of them between hyphens",
)


def pytest_configure(config: pytest.Config) -> None:
    # A shell's `&` and nohup have these ignored, and so would every process that a test signals.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
    # For property tests whose every example traces a network: `settings(settings.get_profile("networks"))`.
    settings.register_profile(
        "networks",
        max_examples=4 if config.option.markexpr == "not slow" else 20,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        phases=(Phase.explicit, Phase.reuse, Phase.generate),
    )
    for marker in _MARKERS:
        config.addinivalue_line("markers", marker)
    # Never the user's own cache. Kept between runs, since the bundled task trains for some seconds;
    # workers of pytest-xdist and subprocesses inherit it.
    cache = config.rootpath / ".pytest_cache" / "user"
    cache.mkdir(parents=True, exist_ok=True)
    os.environ["XDG_CACHE_HOME"] = str(cache)
    os.environ["NETCARVE_PROOF_CACHE"] = "0"  # a test that passes has proven something


@pytest.hookimpl(tryfirst=True)  # before pytest leaves out what is slow
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark as slow what ``quick`` does not name; order the files."""
    first = {f"test_{name}": rank for rank, name in enumerate(_LONGEST)}
    items.sort(key=lambda item: first.get(item.path.stem, len(first)))
    cases: dict[str, list[bool]] = {}
    for item in items:
        if (quick := item.get_closest_marker("quick")) is not None:
            case = item.callspec.id
            named = not {case, *case.split("-")}.isdisjoint(quick.args)
            if named and item.get_closest_marker("slow") is not None:
                raise pytest.UsageError(
                    f"{item.nodeid} is marked `slow` beside `quick`, so that it never is quick"
                )
            cases.setdefault(item.nodeid.partition("[")[0], []).append(named)
            if not named:
                item.add_marker(pytest.mark.slow)
    for test, named in cases.items():
        if len(named) > 1 and not any(named):
            raise pytest.UsageError(f"{test}: none of its cases is one that its mark `quick` names")


@dataclass(frozen=True)
class Done:
    """One command that has ended."""

    code: int
    out: str
    err: str


@pytest.fixture(scope="session")
def netcarve() -> Callable[..., Done]:
    """The command in a process of its own."""

    def netcarve(*arguments: str, cwd: Path | None = None) -> Done:
        command = [sys.executable, "-m", "netcarve", *arguments]
        done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=240, check=False)
        return Done(done.returncode, done.stdout, done.stderr)

    return netcarve


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]) -> Callable[..., Done]:
    """The command in this process, for the many small cases."""
    from netcarve.__main__ import run

    def call(*arguments: str) -> Done:
        capsys.readouterr()
        code = run(arguments)
        out, err = capsys.readouterr()
        return Done(code, out, err)

    return call
