"""The architecture of the house, as a test: which room may import which, what a room may load, who may write files.

`ARROWS` is the table that `docs/architecture.md` explains. An import inside a function counts like any other; imports
for type checking alone do not, as nothing runs through them.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[2] / "src" / "tutelage"

FLOORS = (
    {"redact", "intervals"},
    {"errors"},
    {"config", "files"},
    {"data", "chat"},
    {"pack", "model", "parallel"},
    {"train", "generate", "verify"},
    {"evaluate", "synthesize"},
    {"lab", "report", "cli"},
)

# room -> rooms that it may import; `errors`, `redact`, `intervals` and the room itself go without saying
ARROWS: dict[str, set[str]] = {
    "redact": set(),
    "intervals": set(),
    "errors": set(),
    "config": set(),
    "files": set(),
    "data": {"config", "files"},
    "chat": {"config", "files", "data"},
    "pack": {"config", "files", "data", "chat"},
    "parallel": {"config", "files"},
    "model": {"config", "files", "data", "chat", "pack", "parallel"},
    "generate": {"config", "files", "data", "chat", "pack", "model", "parallel"},
    "train": {"config", "files", "data", "chat", "pack", "model", "parallel"},
    "verify": {"config", "files", "data"},
    "evaluate": {"config", "files", "data", "chat", "pack", "model", "generate", "train", "verify"},
    "synthesize": {"config", "files", "data", "generate", "verify", "evaluate"},
    "report": {"config", "files"},  # it reads run files only
    "lab": {"config", "files", "data", "chat", "pack", "model", "parallel", "generate", "train"},
    "cli": {
        *("config", "files", "data", "chat", "pack", "model", "parallel"),
        *("generate", "train", "verify", "evaluate", "synthesize", "lab", "report"),
    },
}

WITHOUT_TORCH = ("config", "files", "data", "chat", "verify")
HEAVY = ("torch", "transformers", "peft", "datasets", "pyarrow")

FORBIDDEN_NAMES = {"utils", "util", "common", "misc", "helper", "helpers", "base", "manager", "managers", "core"}

# Calls of other libraries that write by themselves; they may write into a staging folder of `files.atomic.new_folder`
# and nowhere else. Everything else goes through `tutelage.files`.
WRITERS_INTO_STAGING = {"save_pretrained", "save_file"}
FILE_WRITING_METHODS = {"write_text", "write_bytes", "touch", "mkdir", "rename", "replace", "symlink_to", "hardlink_to"}


def modules() -> dict[str, Path]:
    """Return every module of the package by its dotted name."""
    found = {}
    for path in sorted(SOURCE.rglob("*.py")):
        parts = path.relative_to(SOURCE.parent).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


MODULES = modules()


def room_of(module: str) -> str:
    """Return the room of a module: the first name below `tutelage`; `python -m tutelage` is another door of `cli`."""
    room = module.split(".")[1] if "." in module else ""
    return "cli" if room == "__main__" else room


def running_nodes(path: Path) -> Iterator[ast.AST]:
    """Yield the nodes of a module, leaving out blocks that only type checkers read."""
    pending: list[ast.AST] = [ast.parse(path.read_text(encoding="utf-8"))]
    while pending:
        node = pending.pop()
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            pending.extend(node.orelse)
            continue
        yield node
        pending.extend(ast.iter_child_nodes(node))


def imports_of(module: str, nodes: Iterator[ast.AST]) -> Iterator[str]:
    """Yield the modules that these nodes import, relative imports resolved."""
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} uses a relative import"
            for alias in node.names:
                submodule = f"{node.module}.{alias.name}"
                yield submodule if submodule in MODULES else str(node.module)


def module_level(path: Path) -> Iterator[ast.AST]:
    """Yield the nodes that run when the module is imported: everything outside functions."""
    pending: list[ast.AST] = [ast.parse(path.read_text(encoding="utf-8"))]
    while pending:
        node = pending.pop()
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        yield node
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            pending.extend(ast.iter_child_nodes(node))


def own_imports(module: str) -> set[str]:
    """Return the modules of this package that `module` imports anywhere."""
    return {name for name in imports_of(module, running_nodes(MODULES[module])) if name.split(".")[0] == "tutelage"}


def test_every_room_stands_in_the_table() -> None:
    rooms = {room_of(module) for module in MODULES} - {""}
    assert rooms == set(ARROWS)
    assert rooms == set().union(*FLOORS)


def test_the_table_points_downwards_only() -> None:
    floor_of = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
    upward = [(room, other) for room, others in ARROWS.items() for other in others if floor_of[other] > floor_of[room]]
    assert upward == []
    assert "generate" not in ARROWS["train"]
    assert "train" not in ARROWS["generate"]
    TopologicalSorter(ARROWS).prepare()


@pytest.mark.parametrize("module", sorted(MODULES))
def test_imports_follow_the_arrows(module: str) -> None:
    room = room_of(module)
    if not room:
        assert own_imports(module) == set()
        return
    allowed = ARROWS[room] | {room, "errors", "redact", "intervals", ""}
    assert {name for name in own_imports(module) if room_of(name) not in allowed} == set()


def test_no_two_files_import_each_other_even_through_others() -> None:
    graph = {module: own_imports(module) - {module} for module in MODULES}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(f"a cycle of imports: {' -> '.join(error.args[1])}")


def test_packages_are_empty_so_that_importing_a_room_loads_nothing() -> None:
    full = [
        module
        for module, path in MODULES.items()
        if path.name == "__init__.py" and any(imports_of(module, running_nodes(path)))
    ]
    assert full == []


@pytest.mark.parametrize("module", [module for module in sorted(MODULES) if room_of(module) in WITHOUT_TORCH])
def test_the_lower_rooms_load_nothing_heavy(module: str) -> None:
    anywhere = {name.split(".")[0] for name in imports_of(module, running_nodes(MODULES[module]))}
    at_import = {name.split(".")[0] for name in imports_of(module, module_level(MODULES[module]))}
    assert "torch" not in anywhere
    assert at_import.isdisjoint(HEAVY)


def test_importing_every_lower_module_does_not_load_torch() -> None:
    lower = [module for module in MODULES if room_of(module) in WITHOUT_TORCH]
    code = f"import sys, importlib\nfor name in {lower!r}: importlib.import_module(name)\n"
    code += f"print([name for name in {HEAVY!r} if name in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_no_file_or_folder_has_a_name_that_says_nothing() -> None:
    names = {part for path in MODULES.values() for part in path.relative_to(SOURCE).with_suffix("").parts}
    assert names & FORBIDDEN_NAMES == set()
    assert [name for name in names if re.search(r"_(utils?|helpers?|common|misc)$", name)] == []


def writes_of(path: Path) -> Iterator[str]:
    """Yield the places of a module that write to the file system by themselves."""
    for node in running_nodes(path):
        if not isinstance(node, ast.Call):
            continue
        place = f"{path.relative_to(SOURCE)}:{node.lineno} {ast.unparse(node)[:80]}"
        if isinstance(node.func, ast.Attribute):
            if (node.func.attr in FILE_WRITING_METHODS and _is_path_call(node)) or (
                node.func.attr in ("open", "fdopen") and _opens_for_writing(node)
            ):
                yield place
        elif isinstance(node.func, ast.Name) and node.func.id == "open" and _opens_for_writing(node):
            yield place


def _is_path_call(call: ast.Call) -> bool:
    """Tell `path.replace(target)` from `text.replace(old, new)`, the only name that strings have too."""
    assert isinstance(call.func, ast.Attribute)
    return call.func.attr != "replace" or (len(call.args) == 1 and not call.keywords)


def _opens_for_writing(call: ast.Call) -> bool:
    source = ast.unparse(call)
    if re.search(r"\bO_(WRONLY|RDWR|APPEND|CREAT)\b", source):
        return True
    is_method = isinstance(call.func, ast.Attribute) and ast.unparse(call.func.value) not in (
        "gzip",
        "io",
        "bz2",
        "lzma",
    )
    arguments = call.args if is_method else call.args[1:]  # the first argument of a function is the file
    modes = [
        argument.value
        for argument in [*arguments, *(keyword.value for keyword in call.keywords if keyword.arg == "mode")]
        if isinstance(argument, ast.Constant) and isinstance(argument.value, str)
    ]
    return any(re.fullmatch(r"[rwaxbt+]{1,3}", mode) and set(mode) & set("wax+") for mode in modes)


@pytest.mark.parametrize("module", [module for module in sorted(MODULES) if room_of(module) != "files"])
def test_only_the_files_room_writes_files(module: str) -> None:
    assert list(writes_of(MODULES[module])) == []


@pytest.mark.parametrize("module", [module for module in sorted(MODULES) if room_of(module) != "files"])
def test_libraries_write_into_staging_folders_only(module: str) -> None:
    """A function that lets a library write takes the folder from `new_folder`, or is handed a staging folder."""
    for function in running_nodes(MODULES[module]):
        if not isinstance(function, ast.FunctionDef):
            continue
        calls = {
            node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            for node in ast.walk(function)
            if isinstance(node, ast.Call)
        }
        if calls & WRITERS_INTO_STAGING:
            parameters = {argument.arg for argument in [*function.args.args, *function.args.kwonlyargs]}
            assert "new_folder" in calls or "staging" in parameters, f"{module}.{function.name}"


def test_nothing_unpickles_or_runs_remote_code() -> None:
    offenders = []
    for module, path in MODULES.items():
        nodes = list(running_nodes(path))
        if {"pickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"} & set(imports_of(module, iter(nodes))):
            offenders.append(f"{module} imports a pickler")
        for node in nodes:
            if isinstance(node, ast.Call):
                if ast.unparse(node.func) in (
                    "torch.load",
                    "torch.save",
                    "eval",
                    "exec",
                    "yaml.load",
                    "yaml.unsafe_load",
                ):
                    offenders.append(f"{module}:{node.lineno} calls {ast.unparse(node.func)}")
                remote = [k.value for k in node.keywords if k.arg == "trust_remote_code"]
                if any(not (isinstance(value, ast.Constant) and value.value is False) for value in remote):
                    offenders.append(f"{module}:{node.lineno} may run remote code")
    assert offenders == []


def test_nothing_is_left_to_be_written() -> None:
    left = [
        f"{path.relative_to(SOURCE)}:{number}"
        for path in MODULES.values()
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1)
        if re.search(r"raise NotImplementedError|\b(TODO|FIXME|XXX)\b", line)
    ]
    assert left == []


def test_only_the_edge_of_the_process_catches_everything() -> None:
    broad = [
        f"{path.relative_to(SOURCE)}:{node.lineno}"
        for path in MODULES.values()
        for node in running_nodes(path)
        if isinstance(node, ast.ExceptHandler)
        and (node.type is None or ast.unparse(node.type) in ("Exception", "BaseException"))
        and not any(
            isinstance(inner, ast.Raise) and inner.exc is None for inner in ast.walk(node)
        )  # cleans up, re-raises
    ]
    assert [place for place in broad if not place.startswith("cli/edge.py")] == []


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("open('a', 'w')", 1),
        ("open('a')", 0),
        ("path.open('ab')", 1),
        ("path.open('rb')", 0),
        ("path.write_text('x')", 1),
        ("os.open(p, os.O_WRONLY)", 1),
        ("path.replace(other)", 1),
        ("text.replace('a', 'b')", 0),
        ("write_text(path, 'x')", 0),
    ],
)
def test_the_search_for_writes_sees_what_it_should(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str, expected: int
) -> None:
    monkeypatch.setattr(sys.modules[__name__], "SOURCE", tmp_path)
    (tmp_path / "probe.py").write_text(code)
    assert len(list(writes_of(tmp_path / "probe.py"))) == expected
