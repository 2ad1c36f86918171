"""The README's code runs as written."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
BLOCKS = re.findall(r"```(python|sh)\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
PYTHON = [code for language, code in BLOCKS if language == "python"]
SHELL = [line for language, code in BLOCKS if language == "sh" for line in code.splitlines()]


def run(*command, cwd):
    done = subprocess.run([sys.executable, *command], cwd=cwd, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_the_python_example(tmp_path):
    (tmp_path / "example.py").write_text(PYTHON[0], encoding="utf-8")
    assert "accuracy" in run("example.py", cwd=tmp_path)
    assert (tmp_path / "digits-small" / "receipt.json").is_file()


def test_the_python_example_with_few_trials_and_one_format(tmp_path, monkeypatch, capsys):
    code = PYTHON[0]
    for whole, few in (
        ("trials=24, workers=2", "trials=4, workers=0"),
        ('"pt2", "onnx", "state"', '"state",'),
    ):
        assert whole in code
        code = code.replace(whole, few)
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "README.md", "exec"), {"__name__": "__main__"})  # here: torch is imported already
    assert "accuracy" in capsys.readouterr().out
    assert (tmp_path / "digits-small" / "receipt.json").is_file()


def test_the_task_file(tmp_path):
    name = re.match(r"# (\S+\.py)\n", PYTHON[1])[1]
    (tmp_path / name).write_text(PYTHON[1], encoding="utf-8")
    assert "Linear" in run("-m", "netcarve", "inspect", f"{name}:task", cwd=tmp_path)


@pytest.mark.parametrize("line", [line for line in SHELL if line.startswith("netcarve ")])
def test_commands_exist_with_these_options(line, call):
    words = line.partition("#")[0].split()
    help_text = call(words[1], "--help").out
    assert all(word in help_text for word in words if word.startswith("--"))
