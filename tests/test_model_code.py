"""The state export as a module of its own: `model.py`, which needs neither netcarve nor the user's class."""

import inspect
import json
import subprocess
import sys

import pytest
import torch
from netcarve.export import ExportError, export
from safetensors.torch import load_file, save_file
from torch import nn


def fresh(code, *arguments):
    """Run code in a process that sees neither this folder nor the user's."""
    command = [sys.executable, "-P", "-c", code, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd="/")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


class Everything(nn.Module):
    """What a printed forward must follow: flags, constants, shared weights, containers on both sides."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.lstm = nn.LSTM(4, 6, 2, dropout=0.3, batch_first=True)
        self.drop, self.head, self.frozen = nn.Dropout(0.2), nn.Linear(6, 6), nn.Linear(6, 6)
        self.same = self.head
        self.frozen.requires_grad_(False)
        self.register_buffer("offset", torch.randn(6), persistent=False)

    def forward(self, pair, flag=True, *, input=None):
        x = self.norm(self.conv(pair["x"])).relu().mean(2).transpose(1, 2)
        x = self.lstm(x)[0].mean(1) + torch.arange(6) + self.offset + torch.tensor([1.0, 2, 3, 4, 5, 6])
        y = self.same(self.head(self.drop(x))) + self.frozen(pair["y"][0])
        return {"y": y * x.shape[0], "pair": (y + input if flag else y, None)}


# In a process that cannot import netcarve, as where it is not installed.
ALONE = """
import json, sys
sys.modules["netcarve"] = None
sys.path.insert(0, sys.argv[1])
sys.dont_write_bytecode = True
import torch
from model import load
from safetensors.torch import load_file, save_file
"""


def one_step(net, *args, **kwargs):
    """Loss and gradients of one pass in train mode, and the buffers after it."""
    torch.manual_seed(1)
    loss = net.train()(*args, **kwargs)["pair"][0].square().mean()
    loss.backward()
    found = {name: p.grad for name, p in net.named_parameters() if p.grad is not None}
    found |= {name: b for name, b in net.named_buffers() if "running" in name}
    return {"loss": loss.detach(), **found}


def test_a_state_is_a_module_of_its_own(tmp_path):
    """Without netcarve and the model's class: bitwise the same answers and training step."""
    torch.manual_seed(0)
    net = Everything()
    for _ in range(3):
        net.norm(net.conv(torch.randn(4, 1, 5, 5)))
    call = {"x": torch.randn(4, 1, 5, 5), "y": [torch.randn(4, 6)]}, torch.randn(4, 6)
    inputs = ((call[0],), {"flag": True, "input": call[1]})
    export(
        net, example_args=inputs[0], example_kwargs=inputs[1], inputs=[inputs],
        directory=tmp_path / "out", formats=["state"],
    )  # fmt: skip
    assert (tmp_path / "out" / "constants.safetensors").is_file()
    save_file({"x": call[0]["x"], "y": call[0]["y"][0], "input": call[1]}, tmp_path / "in")
    code = ALONE + (
        f"{inspect.getsource(one_step)}\n"
        "t = load_file(sys.argv[2])\n"
        "pair, net = {'x': t['x'], 'y': [t['y']]}, load()\n"
        "assert not net.training\n"
        "answer = net(pair, input=t['input'])\n"
        "assert answer['pair'][1] is None\n"
        "step = one_step(net, pair, input=t['input'])\n"
        "save_file({'answer': answer['y'], **step}, sys.argv[3])\n"
        "wrong = []\n"
        "for change in ({'flag': False}, {'input': t['input'][:3]}, {'input': t['input'][:, :5]}):\n"
        "    try:\n"
        "        net(pair, **{'input': t['input'], **change})\n"
        "    except ValueError as error:\n"
        "        wrong.append(str(error))\n"
        "print(json.dumps(wrong))"
    )
    wrong = fresh(code, tmp_path / "out", tmp_path / "in", tmp_path / "given")
    assert [text.partition(" must ")[0] for text in wrong] == ["flag", "input", "input"]
    expected = {"answer": net.eval()(*inputs[0], **inputs[1])["y"]}
    expected |= one_step(net, *inputs[0], **inputs[1])
    torch.testing.assert_close(load_file(tmp_path / "given"), expected, rtol=0, atol=0)


def test_what_cannot_be_printed_needs_what_it_is_rebuilt_from(tmp_path):
    class Branching(nn.Module):
        def forward(self, x):
            return torch.cond(x.sum() > 0, torch.sin, torch.cos, (x,))

    call = ((torch.randn(2, 3),), {})
    with pytest.raises(ExportError, match=r"cannot print .* as a module of its own .* 'rebuild'"):
        export(Branching(), example_args=call[0], inputs=[call], directory=tmp_path / "o", formats=["state"])
