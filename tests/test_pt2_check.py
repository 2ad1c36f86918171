"""A ``.pt2`` from elsewhere holds a graph and numbers, or is not opened."""

import dataclasses
import json
import os
import re
import shutil
import typing
import zipfile

import pytest
import torch
from netcarve.export.loading import _program
from netcarve.standalone import pt2_check
from netcarve.standalone.pt2_check import Pt2Error, check_pt2, clean_pt2, load_pt2
from torch import nn


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A program with a symbolic batch and a guard on it."""
    path = tmp_path_factory.mktemp("pt2") / "model.pt2"
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3)).eval()
    batch = torch.export.Dim("batch", min=1)
    program = torch.export.export(
        model, (torch.zeros(2, 1, 6, 6),), dynamic_shapes=({0: batch},), strict=False
    )
    program.example_inputs = None
    torch.export.save(program, path)
    return path


class TestProgramsWithCode:
    """Files that torch.export.load would execute something of."""

    @pytest.fixture(autouse=True)
    def _folder(self, written, tmp_path):
        self.path = tmp_path / "model.pt2"
        shutil.copy(written, self.path)

    def spoil(self, change=None, *, add=None):
        """Rewrite the archive: ``change(name, bytes) -> bytes`` each of its files, and ``add`` one."""
        with zipfile.ZipFile(self.path) as archive:
            files = {info.filename: archive.read(info) for info in archive.infolist()}
        root = next(iter(files)).partition("/")[0]
        if add:
            files[f"{root}/{add}"] = b"x"
        with zipfile.ZipFile(self.path, "w") as archive:
            for name, data in files.items():
                archive.writestr(name, change(name.partition("/")[2], data) if change else data)

    def program(self, edit):
        def change(name, data):
            if name != "models/model.json":
                return data
            program = json.loads(data)
            edit(program)
            return json.dumps(program).encode()

        self.spoil(change)

    def refused(self, reason):
        with pytest.raises(Pt2Error, match=reason):
            check_pt2(self.path)

    def test_untouched(self):
        check_pt2(self.path)
        self.spoil()
        check_pt2(self.path)

    def test_code_in_the_graph(self, tmp_path):
        mark = tmp_path / "ran"

        def call(program):
            program["graph_module"]["graph"]["nodes"][0]["target"] = "torch.os.system"

        self.program(call)
        self.refused("calls 'torch.os.system'")

        def guard(program):
            program["graph_module"]["graph"]["nodes"][0]["target"] = "torch.ops.aten.conv2d.default"
            program["guards_code"] = [f"open({str(mark)!r}, 'w') is not None"]

        self.program(guard)
        self.refused("more than arithmetic")
        assert not mark.exists()

    def test_expressions_are_evaluated_by_torch(self, tmp_path):
        """What the check is for: without it, the string below would run."""
        mark = tmp_path / "ran"
        text = json.dumps(f"__import__('pathlib').Path({str(mark)!r}).touch()")[1:-1]

        def change(name, data):
            found = re.sub(rb'"expr_str": "[^"]*"', f'"expr_str": "{text}"'.encode(), data)
            return found if name == "models/model.json" else data

        self.spoil(change)
        self.refused("more than arithmetic")
        assert not mark.exists()
        with pytest.raises(Exception):  # noqa: B017 - torch's own, whatever it is
            torch.export.load(self.path)
        assert mark.exists()

    def test_pickles(self):
        self.spoil(lambda name, data: b"x" if name == "data/sample_inputs/model.pt" else data)
        self.refused("pickled sample inputs")
        self.spoil(lambda name, data: b"" if name == "data/sample_inputs/model.pt" else data)
        self.spoil(lambda name, data: data.replace(b'"use_pickle": false', b'"use_pickle": true', 1))
        self.refused("as a pickle")

    @pytest.mark.parametrize("name", ["data/weights/model.pt", "data/constants/opaque_obj_0", "x/model.so"])
    def test_other_files(self, name):
        self.spoil(add=name)
        self.refused("does not need")

    @pytest.mark.parametrize("what", ["expression", "hint", "symbol"])
    def test_sympy_runs_no_text(self, tmp_path, what):
        """``S`` evaluates its text: spelled out of docstrings it got past a check of names and characters."""
        mark = tmp_path / "ran"
        call = f"__import__('pathlib').Path({str(mark)!r}).touch()"
        spelled = " + ".join(f"S('open.__doc__[{open.__doc__.index(c)}]')" for c in "open")
        texts = {
            "expression": f"S(S('{call[:0]}open.__doc__[6]') + {spelled})",
            "hint": "Symbol('s77', positive=True, integer=True)",
            "symbol": f"Symbol({call!r})",
        }

        def expression(program):
            for size in sizes_of(program):
                if "as_expr" in size:
                    size["as_expr"]["expr_str"] = texts[what]
                    if what == "hint":
                        size["as_expr"]["hint"] = {"as_int": call}

        self.program(expression)
        self.refused("what torch writes" if what == "hint" else "more than arithmetic")
        assert not mark.exists()

    def test_an_enum_in_a_tree_is_imported_by_torch(self, tmp_path, monkeypatch):
        """``treespec_loads`` imports the module that an enum names: any file on the path."""
        mark = tmp_path / "ran"
        (tmp_path / "imported_by_torch.py").write_text(f"open({str(mark)!r}, 'w')")
        monkeypatch.syspath_prepend(tmp_path)
        enum = {"__enum__": True, "fqn": "imported_by_torch:X", "name": "Y"}

        def tree(program):
            signature = program["graph_module"]["module_call_graph"][0]["signature"]
            protocol, spec = json.loads(signature["in_spec"])
            spec["children_spec"][1]["context"] = json.dumps([enum])
            signature["in_spec"] = json.dumps([protocol, spec])

        self.program(tree)
        self.refused("as a key")
        assert not mark.exists()
        with pytest.raises(Exception):  # noqa: B017 - torch's own, whatever it is
            torch.export.load(self.path)
        assert mark.exists()

    @pytest.mark.parametrize("field", ["name", "parameter_name", "forward_arg_names", "keyword"])
    def test_names_are_pasted_into_code_by_torch(self, tmp_path, field):
        mark = tmp_path / "ran"
        text = f'x"), open({str(mark)!r}, "w"), getattr(self, "x'

        def rename(value):
            if isinstance(value, dict):
                for key, inner in value.items():
                    if key == field or (field == "keyword" and key == "kind" and value.update(name=text)):
                        value[key] = [text] if isinstance(inner, list) else text
                    else:
                        rename(inner)
            elif isinstance(value, list):
                for inner in value:
                    rename(inner)

        self.program(lambda program: rename(program["graph_module"]))
        self.refused("which is none|not what torch writes")

    @pytest.mark.parametrize(
        "target",
        ["torch.ops.aten.save.default", "torch.ops.aten.from_file.default", "torch.ops.aten.relu.overloads",
         "torch.ops.higher_order.print", "torch.ops.higher_order.call_torchbind", "torch.load",
         "math.factorial", "torch.ops.load_library", "torch.ops.image.read_file.default",
         "_operator.attrgetter"],
    )  # fmt: skip
    def test_other_calls(self, target):
        def call(program):
            program["graph_module"]["graph"]["nodes"][0]["target"] = target

        self.program(call)
        self.refused("no operator that netcarve exports")

    def test_a_counter_that_torch_counts_up_to(self):
        """For ``u9999999999`` torch would count ten thousand million times."""
        many = {"u9999999999": {"min_val": 0, "max_val": 9}}
        self.program(lambda program: program.update(range_constraints=many))
        self.refused("as a symbol")

    def expressions(self, make, *, many=1):
        """Put ``make(i)`` for each symbolic size, ``many`` times over."""

        def edit(program):
            values = program["graph_module"]["graph"]["tensor_values"]
            symbolic = [n for n in values if any("as_expr" in s for s in values[n]["sizes"])]
            for i in range(many):
                values[f"more_{i}"] = json.loads(json.dumps(values[symbolic[0]]))
                for size in sizes_of(values[f"more_{i}"]):
                    if "as_expr" in size:
                        size["as_expr"]["expr_str"] = make(i)

        self.program(edit)

    def test_a_graph_full_of_expressions(self):
        """Each is short: it is their sum that is refused."""
        long = "Add(" + "Symbol('s77'), " * 100 + "Integer({}))"
        self.expressions(long.format, many=100)
        check_pt2(self.path)
        self.expressions(long.format, many=140)
        self.refused("200000 characters of different expressions")

    def test_the_same_expression_again_and_again(self):
        """As batches are; but torch evaluates each anew."""
        self.expressions(lambda i: "Symbol('s77', positive=True, integer=True)", many=500)
        check_pt2(self.path)
        self.expressions(lambda i: "Add(" + "Symbol('s77'), " * 120 + "Integer(1))", many=600)
        self.refused("1000000 characters of repeated expressions.*export a smaller network")

    def test_plain_symbols_count_too(self, monkeypatch):
        monkeypatch.setattr(pt2_check, "_MAX_ALL", 10_000)
        self.expressions(lambda i: "Symbol('s77', positive=True, integer=True)", many=100)
        check_pt2(self.path)
        self.expressions(lambda i: "Symbol('s77', positive=True, integer=True)", many=300)
        self.refused("10000 characters of expressions.*export a smaller network")

    @pytest.mark.parametrize("field", [limited.removeprefix("Graph.") for limited in pt2_check._MOST])
    def test_more_parts_than_a_network_needs(self, field, monkeypatch):
        def grow(program):
            values = program["graph_module"]["graph"][field]
            size = {"as_expr": {"expr_str": "Symbol('s77')", "hint": None}}
            if field == "nodes":
                values += values[-1:] * (20 - len(values))
                return
            one = size if field.startswith("sym_") else next(iter(values.values()))
            values.update({f"more_{i}": one for i in range(20 - len(values))})

        self.program(grow)
        monkeypatch.setitem(pt2_check._MOST, f"Graph.{field}", 20)
        check_pt2(self.path)
        monkeypatch.setitem(pt2_check._MOST, f"Graph.{field}", 19)
        self.refused(f"more than 19 {field.replace('_', ' ')} .*export a smaller network")

    def test_a_machine_without_memory_is_not_a_damaged_file(self, monkeypatch):
        monkeypatch.setattr(torch.export, "load", lambda *_: bytearray(1 << 62))
        with pytest.raises(MemoryError):
            load_pt2(self.path)

    def test_guards_count_too(self):
        guards = [f"L['x'].size()[{i}] != max({'1000, ' * 300})" for i in range(110)]
        self.program(lambda program: program.update(guards_code=guards))
        self.refused("different expressions")

    def test_the_count_begins_anew_for_each_file(self):
        self.expressions(lambda i: "Add(" + "Symbol('s77'), " * 100 + f"Integer({i}))", many=100)
        for _ in range(3):
            check_pt2(self.path)

    @pytest.mark.parametrize("what", ["division", "operands", "name"])
    def test_what_torch_stumbles_over_is_refused_in_words(self, what):
        """Graphs that hold nothing forbidden, and make no sense."""

        def edit(program):
            graph = program["graph_module"]["graph"]
            if what == "division":
                zero = "FloorDiv(Symbol('s77'), Add(Integer(1), Integer(-1)))"
                for size in sizes_of(program):
                    if "as_expr" in size:
                        size["as_expr"]["expr_str"] = zero
            elif what == "operands":
                graph["nodes"][0]["inputs"] = []
            else:
                graph["nodes"][0]["inputs"][0]["arg"] = {"as_tensor": {"name": "nowhere"}}

        self.program(edit)
        check_pt2(self.path)
        with pytest.raises(ValueError, match=r"no program that torch .* opens \(\w+.*export it again"):
            _program(self.path)

    @pytest.mark.parametrize("huge", [[10**6, 10**6], [-1, 2]])
    def test_tensors_that_are_larger_than_their_file(self, huge):
        def change(name, data):
            if name != "data/weights/model_weights_config.json":
                return data
            table = json.loads(data)
            payload = next(p for p in table["config"].values() if len(p["tensor_meta"]["sizes"]) == 2)
            payload["tensor_meta"]["sizes"] = [{"as_int": n} for n in huge]
            return json.dumps(table).encode()

        self.spoil(change)
        self.refused("numbers for")

    def test_packed_parts(self):
        """Torch packs nothing: a part that unpacks to more than the file holds is a bomb."""
        with zipfile.ZipFile(self.path, "a", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("model/data/weights/weight_77", bytes(50_000_000))
        self.refused("declares more than it holds")
        shutil.copy(self.path, self.path.with_name("small.pt2"))
        with zipfile.ZipFile(self.path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("model/models/model.json", "{}")
        self.refused("packed, encrypted or there twice")

    def test_parts_that_are_there_twice(self):
        with zipfile.ZipFile(self.path, "a") as archive, pytest.warns(UserWarning, match="Duplicate"):
            archive.writestr(next(n for n in archive.namelist() if n.endswith("model.json")), "{}")
        self.refused("there twice")

    def test_no_program(self):
        self.path.write_bytes(b"PK")
        self.refused("not a program of torch.export")
        self.path.unlink()
        self.refused("does not exist")

    @pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes with a name here")
    def test_pipes_and_devices_are_no_files(self):
        self.path.unlink()
        os.mkfifo(self.path)
        self.refused("not a regular file")
        self.path.unlink()
        self.path.symlink_to("/dev/zero")
        self.refused("not a regular file")

    def test_torch_is_given_a_copy_without_what_it_does_not_need(self, tmp_path):
        """And answers the same, for any number of samples."""
        secret = "open('x')"
        self.program(lambda program: program["graph_module"]["graph"]["nodes"][0]["metadata"].update(
            stack_trace=secret, source_fn_stack=f"a,{secret}"))  # fmt: skip
        clean = tmp_path / "clean.pt2"
        clean_pt2(self.path, clean)
        assert secret.encode() in self.path.read_bytes()
        assert secret.encode() not in clean.read_bytes()
        check_pt2(clean)
        want = torch.export.load(self.path)
        got = load_pt2(self.path)
        assert got.range_constraints.keys() == want.range_constraints.keys()
        assert got.example_inputs is None
        for samples in (1, 5):
            x = torch.randn(samples, 1, 6, 6)
            assert torch.equal(got.module()(x), want.module()(x))
        with pytest.raises(Exception, match=r"(?i)guard|expected"):
            got.module()(torch.randn(2, 1, 7, 6))


def test_a_graph_that_torch_does_not_understand_is_refused_in_words(written, tmp_path):
    path = tmp_path / "model.pt2"
    with zipfile.ZipFile(written) as old, zipfile.ZipFile(path, "w") as new:
        for info in old.infolist():
            data = old.read(info)
            if info.filename.endswith("models/model.json"):
                program = json.loads(data)
                program["graph_module"]["graph"]["nodes"][0]["inputs"][0]["arg"]["as_tensor"]["name"] = "gone"
                data = json.dumps(program).encode()
            new.writestr(info.filename, data)
    check_pt2(path)
    with pytest.raises(Pt2Error, match=r"no program that torch .* opens .*: export it again"):
        load_pt2(path)


def sizes_of(value):
    """Every size of a program's JSON."""
    if isinstance(value, dict):
        for key, inner in value.items():
            if key in ("sizes", "strides"):
                yield from inner
            else:
                yield from sizes_of(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from sizes_of(inner)


def test_every_text_of_the_schema_has_a_rule_or_is_refused():
    """Torch's next schema may have further texts: they are refused until somebody has thought about them."""
    from netcarve.standalone.pt2_check import _DROPPED, _RULES
    from torch._export.serde import schema

    found = set()
    for name, kind in vars(schema).items():
        for field in dataclasses.fields(kind) if dataclasses.is_dataclass(kind) else ():
            text = str(typing.get_type_hints(kind, globalns=vars(schema))[field.name])
            if re.search(r"dict\[str", text) and (name, field.name) not in _DROPPED:
                found.add(f"{name}.{field.name}.keys")
            if (
                re.search(r"(?<!dict\[)\bstr\b|dict\[str, str\]|<class 'str'>", text)
                and (name, field.name) not in _DROPPED
            ):
                found.add(f"{name}.{field.name}")
    custom = {"CustomObjArgument.name", "CustomObjArgument.class_fqn", "InputToCustomObjSpec.custom_obj_name",
              "Argument.as_operator", "Graph.custom_obj_values.keys", "NamedTupleDef.field_names",
              "ExternKernelNode.name"}  # fmt: skip
    found = {one for one in found if not one.startswith("AOTInductorModelPickleData")}
    assert found - custom == set(_RULES)
