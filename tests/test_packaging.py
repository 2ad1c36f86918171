"""The repository root is the package: what ships, what may import what, and how fast it starts."""

from __future__ import annotations

import ast
import importlib
import inspect
import os
import resource
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from importlib.metadata import packages_distributions
from pathlib import Path

import netcarve
import pytest
from netcarve.cli import COMMANDS, load
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
# Each imports only from those before it.
ORDER = (
    "standalone",
    "devices",
    "model",
    "spaces",
    "results",
    "evaluators",
    "search",
    "explain",
    "export",
    "deployment",
    "report",
    "engine",
    "testing",
    "commands",
    "cli",
    "__main__",
)
NOT_SHIPPED = {"tests", "benchmarks", "examples", "docs", "build", "dist", "runs"}
HEAVY = ("torch", "ray", "pandas", "plotly", "matplotlib", "sklearn", "scipy", "pymoo", "optuna", "onnx")


def folders() -> Iterator[Path]:
    """Every folder below the root that is part of the package."""
    for path in sorted(ROOT.rglob("__init__.py")):
        parts = path.parent.relative_to(ROOT).parts
        if not parts or not (parts[0].startswith(".") or parts[0] in NOT_SHIPPED):
            yield path.parent


def modules() -> dict[str, Path]:
    """Dotted name -> file, of everything that ships."""
    found = {}
    for folder in folders():
        for path in folder.glob("*.py"):
            parts = path.relative_to(ROOT).with_suffix("").parts
            found[".".join(["netcarve", *(p for p in parts if p != "__init__")])] = path
    return found


MODULES = modules()
NOT_PRODUCT = [p for top in ("tests", "benchmarks", "examples") for p in sorted((ROOT / top).rglob("*.py"))]
# Run with their own folder on the path: tests, benchmarks, and what an export carries along.
SCRIPTS = {p.stem for p in ROOT.rglob("*.py") if p.parent.name in ("tests", "benchmarks", "standalone")}
# Installed by hand by those who want them; nothing else asks for them.
BY_HAND = {"atheris", "executorch", "torch_pruning"}


def imports(name: str, *, types: bool) -> set[str]:
    """Modules of ours that ``name`` imports anywhere, in functions too.

    ``types``: also what it imports for type checkers only.
    """
    tree = ast.parse(MODULES[name].read_text(encoding="utf-8"))
    package = name if MODULES[name].name == "__init__.py" else name.rpartition(".")[0]
    skipped: set[ast.AST] = set()
    found = set()
    for node in ast.walk(tree):
        if not types and isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            skipped.update(inner for stmt in node.body for inner in ast.walk(stmt))
        if node in skipped:
            continue
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*above, *([node.module] if node.module else [])])
            for alias in node.names:  # a name taken from a package may be a module of it
                module = f"{base}.{alias.name}"
                found.add(module if module in MODULES else base)
    return {module for module in found if module in MODULES and module != name}


def imported_from_elsewhere(path: Path) -> set[str]:
    """Top-level packages that a file imports anywhere, but for Python's, ours and those installed by hand."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
            found.add(node.module.partition(".")[0])
    return found - sys.stdlib_module_names - SCRIPTS - BY_HAND - {"netcarve"}


def imported_at_the_top(path: Path) -> set[str]:
    """Top-level packages that a file imports whenever it is imported itself."""
    body = ast.parse(path.read_text(encoding="utf-8")).body
    found = {alias.name for node in body if isinstance(node, ast.Import) for alias in node.names}
    found |= {n.module for n in body if isinstance(n, ast.ImportFrom) and n.module and not n.level}
    return {name.partition(".")[0] for name in found}


def layer(name: str) -> int:
    parts = name.split(".")
    return ORDER.index(parts[1]) if len(parts) > 1 else len(ORDER)


def python(*arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments], cwd=cwd, capture_output=True, text=True, timeout=120, check=False
    )


def test_every_folder_is_listed_as_a_package() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    listed = settings["tool"]["setuptools"]["packages"]
    assert sorted(listed) == sorted(
        ".".join(("netcarve", *folder.relative_to(ROOT).parts)) for folder in folders()
    )


def test_no_module_lies_in_a_folder_that_does_not_ship() -> None:
    shipped = set(folders())
    strays = [
        str(path.relative_to(ROOT))
        for top in ORDER[: ORDER.index("testing")]
        for path in (ROOT / top).rglob("*.py")
        if path.parent not in shipped
    ]
    assert strays == []


@pytest.mark.parametrize("name", sorted(MODULES))
def test_imports_follow_the_order_of_the_folders(name: str) -> None:
    wrong = sorted(other for other in imports(name, types=True) if layer(other) > layer(name))
    assert wrong == [], f"{name} may import only from {ORDER[: layer(name) + 1]}"


def test_no_import_cycles() -> None:
    graph = {name: imports(name, types=True) for name in MODULES}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail("imports in a circle: " + " <- ".join(error.args[1]))


def test_files_stay_small() -> None:
    paths = [*MODULES.values(), *NOT_PRODUCT]
    lengths = {str(p.relative_to(ROOT)): len(p.read_text(encoding="utf-8").splitlines()) for p in paths}
    assert {path: lines for path, lines in lengths.items() if lines > 400} == {}


def test_entry_points_name_things_that_exist() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    targets = [*project["scripts"].values()]
    targets += [target for group in project["entry-points"].values() for target in group.values()]
    for target in targets:
        module, _, attribute = target.partition(":")
        tree = ast.parse(MODULES[module].read_text(encoding="utf-8"))
        assert attribute in {getattr(node, "name", None) for node in tree.body}, target


def test_every_dependency_is_pinned_in_constraints() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    asked = [
        *project["dependencies"],
        *(d for extra in project["optional-dependencies"].values() for d in extra),
    ]
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = dict(line.split("==") for line in lines if line and not line.startswith("#"))
    for requirement in map(Requirement, asked):
        assert requirement.name in pins, f"constraints.txt lacks {requirement.name}"
        assert requirement.specifier.contains(pins[requirement.name]), requirement
    assert set(pins) == {Requirement(text).name for text in asked}


def test_what_is_imported_is_declared() -> None:
    """Also what comes along with another distribution today: torch brings sympy, say."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    every = {"": project["dependencies"], **project["optional-dependencies"]}
    for_users = {name: texts for name, texts in every.items() if name not in ("dev", "zoo")}
    installed = packages_distributions()
    for path in (*MODULES.values(), *NOT_PRODUCT):
        groups = for_users if path in MODULES.values() else every
        declared = {canonicalize_name(Requirement(d).name) for texts in groups.values() for d in texts}
        for name in imported_from_elsewhere(path):
            sources = {canonicalize_name(d) for d in installed.get(name, [name])}
            assert sources & declared, f"{path.relative_to(ROOT)} imports {name}, which nothing declares"


def test_the_version_is_said_once_and_the_same() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["version"] == netcarve.__version__


def test_the_root_names_are_lazy() -> None:
    code = f"import sys, netcarve; print([m for m in {HEAVY!r} if m in sys.modules], netcarve.__version__)"
    done = python("-c", code)
    assert done.stdout.strip() == f"[] {netcarve.__version__}", done.stderr


@pytest.mark.parametrize("name", ["evaluators", "spaces", "results", "search"])
def test_public_names_of_packages_load(name: str) -> None:
    package = importlib.import_module(f"netcarve.{name}")
    for public in package.__all__:
        assert getattr(package, public) is not None, public


def test_the_root_names_exist() -> None:
    for name in netcarve.__all__:
        assert getattr(netcarve, name) is not None
    assert set(netcarve.__all__) <= set(dir(netcarve))
    with pytest.raises(AttributeError, match="no_such_name"):
        netcarve.no_such_name  # noqa: B018


def test_spaces_searching_and_results_need_no_torch() -> None:
    code = (
        "import sys, netcarve.search, netcarve.results, netcarve.spaces.space, netcarve.spaces.kinds\n"
        "from netcarve.testing import toy_space\n"
        "from netcarve.search import searcher\n"
        "space = toy_space()\n"
        "assert 'prune' in netcarve.spaces.kinds.known_kinds()\n"
        "assert len(searcher('random', space, ['quality:max', 'cost:min'], seed=0).ask(3)) == 3\n"
        "print('torch' in sys.modules)"
    )
    done = python("-c", code)
    assert done.stdout.strip() == "False", done.stderr


def test_of_spaces_only_the_traced_model_s_side_imports_torch() -> None:
    """Its kinds aside. What knows choices, candidates and numbers alone leaves torch to ``model``."""
    heavy = {p.stem for p in (ROOT / "spaces").glob("*.py") if "torch" in imported_at_the_top(p)}
    assert heavy == {"blueprint", "builder", "lengths", "testing"}


@pytest.mark.parametrize("arguments", [["--help"], ["sweep", "--help"], ["--version"]])
def test_help_is_instant(arguments: list[str]) -> None:
    code = (
        "import sys\n"
        "from netcarve.__main__ import main\n"
        f"sys.argv = ['netcarve', *{arguments!r}]\n"
        "try: main()\n"
        f"finally: print([m for m in {HEAVY!r} if m in sys.modules], file=sys.stderr)\n"
    )
    seconds = []
    for _ in range(3):
        start = _children_seconds()
        done = python("-c", code)
        seconds.append(_children_seconds() - start)
        assert done.returncode == 0, done.stderr
        assert done.stderr.strip() == "[]"
        assert "netcarve" in done.stdout
    assert min(seconds) < 1.0  # 0.1 to 0.3 s of a processor on an idle machine; tests share theirs


def test_the_list_of_commands_imports_none_of_them() -> None:
    code = (
        "import sys\n"
        "from netcarve.__main__ import main\n"
        "sys.argv = ['netcarve']\n"
        "try: main()\n"
        "finally: print([m for m in sys.modules if m.startswith(('netcarve.', 'rich'))], file=sys.stderr)\n"
    )
    done = python("-c", code)
    assert done.stderr.strip() == "['netcarve.__main__', 'netcarve.cli']"


@pytest.mark.parametrize("name", COMMANDS)
def test_the_list_of_commands_says_how_each_command_s_own_help_begins(name: str) -> None:
    entry = COMMANDS[name]
    assert len(name) < 10
    assert len(entry.summary) <= 65, "it is broken on a terminal of 80 columns"
    assert inspect.getdoc(load(name).callback).startswith(entry.summary.rstrip("."))


def _children_seconds() -> float:
    """CPU time of the processes that have ended; what others do at the same time is not in it."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


@pytest.mark.slow
def test_pytest_collects_from_a_folder_of_any_name(tmp_path: Path) -> None:
    clone = tmp_path / "a-b"
    skip = shutil.ignore_patterns(".*", "__pycache__", "*.egg-info", "runs", "build", "dist", "tests")
    shutil.copytree(ROOT, clone, ignore=skip)
    (clone / "tests").mkdir()
    shutil.copy(ROOT / "tests" / "conftest.py", clone / "tests")
    (clone / "tests" / "test_one.py").write_text(
        "import netcarve\n\n\ndef test_one(): assert netcarve.Limit\n"
    )
    for arguments in ((), (".",), ("tests/test_one.py",)):
        done = python("-m", "pytest", "-p", "no:cacheprovider", *arguments, cwd=clone)
        assert done.returncode == 0, done.stdout + done.stderr
        assert "1 passed" in done.stdout


def test_make_says_what_is_missing(tmp_path: Path) -> None:
    if shutil.which("make") is None:
        pytest.skip("make is not installed")
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path)
    environment = {**os.environ, "PYTHON": "/no/such/python"}
    done = subprocess.run(
        ["make", "test"], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode != 0
    assert "needs Python 3.11 or newer" in done.stderr
    assert not (tmp_path / ".venv").exists()


def test_folders_whose_frames_are_left_out_of_tracebacks_are_all_of_ours() -> None:
    ours = {folder.relative_to(ROOT).parts[0] for folder in folders() if folder != ROOT} - {"commands"}
    for text in ((ROOT / "evaluators" / "errors.py"), (ROOT / "model" / "refusal.py")):
        said = {
            node.value.rstrip("/")
            for node in ast.walk(ast.parse(text.read_text(encoding="utf-8")))
            if isinstance(node, ast.Constant) and isinstance(node.value, str)
        }
        assert ours <= said, text
