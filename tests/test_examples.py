"""The task files in examples/ work as written, on small data."""

from pathlib import Path

import netcarve
import pytest
import torch
from netcarve.evaluators.errors import TaskError
from netcarve.evaluators.resolve import resolve_task

EXAMPLES = Path(__file__).parent.parent / "examples"
IMAGES = f"{EXAMPLES / 'images_task.py'}:task"


def score(task):
    with torch.inference_mode():
        return task.measure(task.model(*args, **kwargs) for args, kwargs, _ in task.batches)


@pytest.fixture
def images(tmp_path, monkeypatch):
    """40 PNG files of sizes 20 to 29: left half bright, or right half bright."""
    image_module = pytest.importorskip("PIL.Image")
    generator = torch.Generator().manual_seed(0)
    for number in range(40):
        side = 20 + number % 10
        pixels = torch.randint(100, (side, side), dtype=torch.uint8, generator=generator)
        name = ("left", "right")[number // 20]
        half = slice(0, side // 2) if name == "left" else slice(side // 2, side)
        pixels[:, half] += 150
        (tmp_path / name).mkdir(exist_ok=True)
        image_module.fromarray(pixels.numpy()).save(tmp_path / name / f"{number:03}.png")
    monkeypatch.setenv("NETCARVE_IMAGES", str(tmp_path))
    return tmp_path


def test_tensors():
    spec = f"{EXAMPLES / 'tensors_task.py'}:task"
    task = resolve_task(spec)
    assert isinstance(task, netcarve.Task)
    assert task.name == "tumours"
    assert sum(len(targets) for _, _, targets in task.batches) == 143
    assert score(task)["accuracy"] > 0.95
    assert resolve_task(spec).fingerprint() == task.fingerprint()  # or no run of it could be resumed


def test_images(images):
    task = resolve_task(IMAGES)
    assert sum(len(targets) for _, _, targets in task.batches) == 10
    args, _ = task.example
    assert args[0].shape == (1, 3, 32, 32)
    pixels = task.batches[0][0][0]
    assert -1 <= pixels.min() < -0.9 < 0.9 < pixels.max() <= 1
    assert score(task)["accuracy"] == 1.0
    assert resolve_task(IMAGES).fingerprint() == task.fingerprint()


@pytest.mark.quick("images_task.py")
@pytest.mark.parametrize("spec", ["tensors_task.py", "images_task.py"])
def test_can_be_pruned(spec, images):
    task = resolve_task(f"{EXAMPLES / spec}:task")
    space = netcarve.trace(task.model, task.example).space("prune")
    smallest = space.candidate([count - 1 for count in space.counts])
    costs = space.costs([space.baseline, smallest])
    assert costs["macs"][1] < 0.2 * costs["macs"][0]
    with torch.inference_mode():
        assert space.build(smallest)(*task.example[0]).shape == (1, 2)


def test_images_missing(tmp_path, monkeypatch):
    monkeypatch.setenv("NETCARVE_IMAGES", str(tmp_path / "none"))
    with pytest.raises(TaskError, match=r"no folder '.*none'; set NETCARVE_IMAGES to one with a subfolder"):
        resolve_task(IMAGES)
    monkeypatch.delenv("NETCARVE_IMAGES")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(TaskError, match="no folder 'images'; set NETCARVE_IMAGES"):
        resolve_task(IMAGES)


def test_images_without_classes(tmp_path, monkeypatch):
    monkeypatch.setenv("NETCARVE_IMAGES", str(tmp_path))
    (tmp_path / "cat").mkdir()
    with pytest.raises(TaskError, match=r"needs at least two class folders with PNG files, found \[\]"):
        resolve_task(IMAGES)
    (tmp_path / "cat" / "1.png").touch()
    with pytest.raises(TaskError, match=r"found \['cat'\]"):
        resolve_task(IMAGES)
