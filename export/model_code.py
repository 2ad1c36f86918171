"""Model printer: a captured program as one Python file that needs torch and safetensors, nothing else.

The file holds a module with the parameters under their own names and, as its forward, the program's ATen
calls. Batch-norms, dropouts and recurrent layers follow ``train()``. Sizes and constants of the capture are
checked at each call.
"""

from __future__ import annotations

import inspect
import keyword
import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import torch
from torch import fx, nn
from torch.fx.graph import CodeGen
from torch.utils import _pytree as pytree

from ..model.captured_module import frozen_flags
from ..model.coupling.walk import get_attribute
from .packing import Form, source

_NAMESPACES = {"aten", "prims", "prim"}
_MODULES = {"torch", "_operator", "operator", "math", "builtins"}  # of functions that are no operators
_IMPORTS = {
    "inf": "from math import inf",
    "nan": "from math import nan",
    "math": "import math",
    "operator": "import operator",
    "_operator": "import _operator",
}

_FILE = '''\
"""{title}: a network as plain PyTorch; needs torch and safetensors, nothing else.

    from model import load

    model = load()  # the weights beside this file, in eval mode; model.train() makes it train
"""

{imports}

# Name: shape, dtype, whether it is trained.
PARAMETERS = {{{parameters}}}
# Name: shape, dtype, whether it is among the weights; else it is a constant of the network.
BUFFERS = {{{buffers}}}
SHARED = {{{shared}}}  # another name: of the same tensor


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        for name, (shape, dtype, trained) in PARAMETERS.items():
            parent, leaf = _parent(self, name)
            value = nn.Parameter(torch.zeros(shape, dtype=dtype), requires_grad=trained)
            parent.register_parameter(leaf, value)
        for name, (shape, dtype, kept) in BUFFERS.items():
            parent, leaf = _parent(self, name)
            parent.register_buffer(leaf, torch.zeros(shape, dtype=dtype), persistent=kept)
        for name, other in SHARED.items():
            parent, leaf = _parent(self, name)
            owner, owned = _parent(self, other)
            value = getattr(owner, owned)
            register = parent.register_parameter if owned in owner._parameters else parent.register_buffer
            register(leaf, value)
        self.eval()

    @property
    def _device(self):
        return next((t.device for t in (*self.parameters(), *self.buffers())), torch.device("cpu"))

    def forward({signature}):
{body}


def load(weights=None):
    """The network in eval mode, with the weights beside this file or those of another safetensors file."""
    folder = Path(__file__).parent
    model = Model()
    {loading}
{constants}    return model


def _parent(module, name):
    """The submodule that holds a tensor, made where it is missing, and the tensor's name there."""
    *path, leaf = name.split(".")
    for part in path:
        if part not in module._modules:
            module.add_module(part, nn.Module())
        module = module._modules[part]
    return module, leaf


def _check(inputs):
    """Refuse what the network was not captured for: other sizes or constants."""
    lengths = {{}}
    for name, (value, expected) in inputs.items():
        if not isinstance(expected, list):
            if value != expected:
                raise ValueError(f"{{name}} must be {{expected!r}}, as in the capture; got {{value!r}}")
            continue
        sizes = list(value.shape)
        wanted = [lengths.setdefault(e, n) if isinstance(e, str) else e for e, n in zip(expected, sizes)]
        if len(sizes) != len(expected) or sizes != [n if e is None else e for e, n in zip(wanted, sizes)]:
            raise ValueError(f"{{name}} must have the sizes {{expected}}; got {{sizes}}")
'''
_LOAD = 'load_model(model, str(weights or folder / "weights.safetensors"))'
_LOAD_PACKED = """state = load_file(str(weights or folder / "weights.safetensors"))
    for name, form in PACKED.items():
        parts = [state.pop(f"{name}.{part}") for part in ("codes", "scale", "zero")]
        state[name] = unpacked(*parts, *form)
    missing, unexpected = model.load_state_dict(state, strict=False)
    if unexpected or set(missing) - set(SHARED) - set(SHARED.values()):
        raise ValueError(f"the weights do not fit: missing {missing}, unexpected {unexpected}")"""
_LOAD_CONSTANTS = """\
    for name, value in load_file(str(folder / "constants.safetensors")).items():
        model.get_buffer(name).copy_(value)
"""


class UnprintableError(Exception):
    """The program cannot be printed; the message says why."""


class ModelCode:
    """A program as text, and the constants that are not among the model's weights.

    Args:
        model: the module that was captured; its state dict names the weights.
        program: of it, in eval mode; of :class:`.source.PlainOutput` around it where outputs are not plain.
        module: what was captured.
        title: the first line of the file.
        packed: how weights are packed that are (see :mod:`.packing`), by name.

    Attributes:
        text: of the file.
        constants: tensors by name, to be saved beside it.

    Raises:
        UnprintableError: operators of another library, control flow, inputs that cannot be written out.
    """

    def __init__(
        self,
        model: nn.Module,
        program: torch.export.ExportedProgram,
        module: nn.Module,
        title: str,
        packed: Mapping[str, Form] = MappingProxyType({}),
    ) -> None:
        prefix = "" if module is model else "model."
        unlifted = program.module()
        assert isinstance(unlifted, fx.GraphModule)
        graph = fx.Graph()
        out = graph.graph_copy(unlifted.graph, {})
        graph.output(out)
        values = _strip(graph, unlifted, prefix)
        _check_calls(graph)
        state = model.state_dict(keep_vars=True)
        self.constants = {n: v.detach().contiguous().clone() for n, v in values.items() if n not in state}
        signature, first = _signature(graph, program, module)
        src = _forward(graph, program)
        tensors = _declared(state, self.constants)
        lines = [f"        {line}" for line in first] + [f"    {line}" for line in src.splitlines()]
        used = {name for name in _IMPORTS if re.search(rf"(?<![\w.]){name}\b", src)}
        read = [*(["load_file"] if self.constants or packed else []), *([] if packed else ["load_model"])]
        safetensors = ", ".join(read)
        imports = [
            *sorted(_IMPORTS[name] for name in used if _IMPORTS[name].startswith("import")),
            *sorted(_IMPORTS[name] for name in used if "from math" in _IMPORTS[name]),
            "from pathlib import Path",
            "",
            "import torch",
            f"from safetensors.torch import {safetensors}",
            "from torch import nn",
        ]
        self.text = _FILE.format(
            title=re.sub(r'["\\\n]', " ", title),
            imports="\n".join(imports),
            signature=signature,
            body="\n".join(line.rstrip() for line in lines if line.strip()),
            constants=_LOAD_CONSTANTS if self.constants else "",
            loading=_LOAD_PACKED if packed else _LOAD,
            **tensors,
        )
        if packed:
            rows = "".join(f"\n    {name!r}: {form!r}," for name, form in packed.items())
            about = (
                "# Name: bits of a number, inputs that share a scale (0: all), shape, axis of the outputs."
            )
            self.text += f"\n\n{about}\nPACKED = {{{rows}\n}}\n\n\n{source()}"


def _strip(graph: fx.Graph, module: fx.GraphModule, prefix: str) -> dict[str, torch.Tensor]:
    """Guards go, flags and devices follow the module, tensors get their own names; what the graph reads."""
    values: dict[str, torch.Tensor] = {}
    for node in list(reversed(graph.nodes)):
        if node.op == "call_module" and str(node.target) == "_guards_fn":
            graph.erase_node(node)
        elif node.op == "call_module":
            raise UnprintableError(f"it calls a module, {node.target}")
        elif node.op == "get_attr" and not node.users:
            graph.erase_node(node)
        elif node.op == "get_attr":
            value = get_attribute(module, str(node.target))
            if not isinstance(value, torch.Tensor):
                raise UnprintableError("it has control flow of its own (torch.cond, scan, or the like)")
            node.target = str(node.target).removeprefix(prefix)
            values[node.target] = value
            min(node.users, key=list(graph.nodes).index).prepend(node)
    first = next(n for n in graph.nodes if n.op != "placeholder")
    made: dict[str, fx.Node] = {}

    def own(name: str) -> fx.Node:
        if name not in made:
            with graph.inserting_before(first):
                made[name] = graph.create_node("get_attr", name)
        return made[name]

    for node, position in frozen_flags(graph):
        node.args = (*node.args[:position], own("training"), *node.args[position + 1 :])
    for node in list(graph.nodes):
        place = lambda leaf: own("_device") if isinstance(leaf, torch.device) else leaf  # noqa: E731
        node.args = fx.node.map_aggregate(node.args, place)
        node.kwargs = fx.node.map_aggregate(node.kwargs, place)
    return values


def _check_calls(graph: fx.Graph) -> None:
    for node in graph.nodes:
        if node.op != "call_function":
            continue
        if isinstance(node.target, torch._ops.OpOverload):
            if node.target.namespace not in _NAMESPACES:
                raise UnprintableError(f"it calls {node.target}, an operator of another library")
        elif isinstance(node.target, torch._ops.HigherOrderOperator):
            raise UnprintableError(f"it calls {node.target}, which takes graphs")
        elif str(getattr(node.target, "__module__", "")).partition(".")[0] not in _MODULES:
            raise UnprintableError(f"it calls {node.target}")


def _signature(
    graph: fx.Graph, program: torch.export.ExportedProgram, module: nn.Module
) -> tuple[str, list[str]]:
    """Parameters of forward as text, and the lines that check the inputs and take them apart."""
    nodes = [n for n in graph.nodes if n.op == "placeholder"]
    spec = program.call_spec.in_spec
    assert spec is not None
    numbered = pytree.tree_unflatten(list(range(len(nodes))), spec)
    paths, _ = pytree.tree_flatten_with_path(numbered)
    kinds = inspect.signature(module.forward).parameters.values()
    named = [p.name for p in kinds if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    rest = next((p.name for p in kinds if p.kind is p.VAR_POSITIONAL), "rest")
    texts: dict[int, str] = {}
    values: dict[str, Any] = {}  # of whole arguments that are constants
    args, kwargs = numbered
    for path, index in paths:
        place: Any = path
        if place[0].idx == 1:
            whole = place[1].key
        else:
            at = place[1].idx
            whole = named[at] if at < len(named) else f"{rest}[{at - len(named)}]"
        texts[index] = f"{whole}{pytree.keystr(tuple(path[2:]))}"
        if len(path) == 2 and not isinstance(nodes[index].meta.get("val"), torch.Tensor):
            values[str(whole)] = nodes[index].meta.get("val")
    names = [*named[: len(args)], *kwargs]
    if bad := [n for n in names if not n.isidentifier() or keyword.iskeyword(n) or n == "self"]:
        raise UnprintableError(f"its input {bad[0]!r} cannot be written as a name")
    written: list[str] = []
    optional = True
    for name in reversed(named[: len(args)]):  # a default may only be followed by defaults
        optional = optional and name in values
        written.insert(0, f"{name}={values[name]!r}" if optional else name)
    if len(args) > len(named):
        written = [*(text.partition("=")[0] for text in written), f"*{rest}"]
    elif kwargs:
        written.append("*")
    written += [f"{name}={values[name]!r}" if name in values else name for name in kwargs]
    checks = ", ".join(
        f"{texts[k]!r}: ({texts[k]}, {_expected(node.meta.get('val'))})" for k, node in enumerate(nodes)
    )
    taken = [(n.name, texts[k]) for k, n in enumerate(nodes) if n.users and n.name != texts[k]]
    lines = [f"_check({{{checks}}})"]
    if taken:
        lines.append(f"{', '.join(n for n, _ in taken)} = {', '.join(text for _, text in taken)}")
    return ", ".join(["self", *written]), lines


def _expected(value: object) -> str:
    """Sizes of a tensor, symbols as names, None where a size is computed from others; a constant as it is."""
    if not isinstance(value, torch.Tensor):
        if value is None or isinstance(value, bool | int | float | str):
            return repr(value)
        raise UnprintableError(f"an input of type {type(value).__name__} cannot be written out")
    sizes = [n if isinstance(n, int) else str(n) if str(n).isidentifier() else None for n in value.shape]
    return repr(sizes)


def _forward(graph: fx.Graph, program: torch.export.ExportedProgram) -> str:
    """The body of forward."""
    out = next(n for n in graph.nodes if n.op == "output")
    spec = program.call_spec.out_spec
    assert spec is not None
    leaves: Any = out.args[0]
    out.args = (pytree.tree_unflatten(list(leaves), spec),)
    graph.set_codegen(CodeGen())
    graph.lint()
    code = graph.python_code("self")
    head, _, body = code.src.strip().partition("\n")
    known = {"torch", "NoneType", "device", "pytree", "fx_pytree", *_IMPORTS}
    if strays := [n for n in code.globals if n not in known and re.search(rf"\b{re.escape(n)}\b", body)]:
        raise UnprintableError(f"it refers to {strays[0]}")
    assert head.startswith("def forward(")
    return body


def _declared(state: Mapping[str, Any], constants: Mapping[str, torch.Tensor]) -> dict[str, str]:
    """The tables of tensors as text."""
    tables: dict[str, list[str]] = {"parameters": [], "buffers": [], "shared": []}
    seen: dict[int, str] = {}
    for name, value in state.items():
        if not isinstance(value, torch.Tensor):
            raise UnprintableError(f"its state holds {name}, which is no tensor")
        if id(value) in seen:
            tables["shared"].append(f'"{name}": "{seen[id(value)]}"')
            continue
        seen[id(value)] = name
        parameter = isinstance(value, nn.Parameter)
        last = value.requires_grad if parameter else True
        kind = "parameters" if parameter else "buffers"
        tables[kind].append(f'"{name}": ({tuple(value.shape)}, {value.dtype}, {last})')
    for name, value in constants.items():
        tables["buffers"].append(f'"{name}": ({tuple(value.shape)}, {value.dtype}, False)')
    return {
        kind: "".join(f"\n    {row}," for row in rows) + ("\n" if rows else "")
        for kind, rows in tables.items()
    }
