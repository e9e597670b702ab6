"""The layer table in the package's docstring holds, and so do the design's rules on imports."""

from __future__ import annotations

import ast
import fnmatch
import re
import subprocess
import sys
from pathlib import Path

import pytest

import pythia_core

PACKAGE = Path(pythia_core.__file__).parent
DATA_MODULES = (
    "tokens order schedule intervene prepare token_making corpus items dedup tokenizer wheels"
).split()
OPTIONAL = (
    "datasets datatrove flash_attn lm_eval matplotlib papermill ray seaborn transformers triton"
)


def modules() -> dict[str, Path]:
    """Every module of the package by its name without the package, e.g. "studies.gender_bias"."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = list(path.relative_to(PACKAGE).with_suffix("").parts)
        if parts[-1] == "__init__" and len(parts) > 1:
            parts.pop()
        if parts != ["__init__"]:
            found[".".join(parts)] = path
    return found


def layer_table() -> list[tuple[str, int]]:
    """(pattern, layer) of every name in the docstring's table."""
    rows = re.findall(r"^    (\d)  (.+)$", pythia_core.__doc__, flags=re.MULTILINE)
    names = [(name, int(layer)) for layer, text in rows for name in text.split()]
    return [(name.replace("/", "."), layer) for name, layer in names if name != "->"]


def layer_of(module: str) -> int | None:
    for pattern, layer in layer_table():
        if fnmatch.fnmatch(module, pattern) or module == pattern.removesuffix(".*"):
            return layer
    return None


def without_type_checking(tree: ast.AST) -> ast.AST:
    """Imports under `if TYPE_CHECKING` never run."""
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            node.body = [ast.Pass()]
    return tree


def imported(node: ast.AST, known: dict[str, Path]) -> set[str]:
    """Names imported anywhere below a node: "torch", or "pythia_core.x" for our own modules."""
    names = set()
    for each in ast.walk(node):
        if isinstance(each, ast.Import):
            names |= {alias.name for alias in each.names}
        elif isinstance(each, ast.ImportFrom):
            assert each.level == 0, "relative imports hide layers"
            for alias in each.names:
                whole = f"{each.module}.{alias.name}"
                ours = whole.removeprefix("pythia_core.") in known
                names.add(whole if ours else each.module)
    return names


def imports_of(path: Path, top_level_only: bool = False) -> set[str]:
    tree = without_type_checking(ast.parse(path.read_text(encoding="utf-8")))
    known = modules()
    if not top_level_only:
        return imported(tree, known)
    found = set()
    stack = [tree]
    while stack:
        for child in ast.iter_child_nodes(stack.pop()):
            if isinstance(child, (ast.Import, ast.ImportFrom)):
                found |= imported(child, known)
            elif not isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
                stack.append(child)
    return found


def our_imports(path: Path) -> set[str]:
    names = (
        n.removeprefix("pythia_core.") for n in imports_of(path) if n.startswith("pythia_core.")
    )
    return {name for name in names if name in modules()}


def test_the_table_was_read() -> None:
    layers = {layer for _, layer in layer_table()}
    assert layers == set(range(7))
    assert (
        layer_of("errors") == 0 and layer_of("kernels.gelu") == 1 and layer_of("nonsense") is None
    )


@pytest.mark.parametrize("module", modules())
def test_every_module_has_a_layer(module: str) -> None:
    assert layer_of(module) is not None, (
        f"pythia_core.{module} is in no layer: add it to the table in pythia_core/__init__.py"
    )


@pytest.mark.parametrize(("module", "path"), modules().items())
def test_no_module_imports_a_higher_layer(module: str, path: Path) -> None:
    mine = layer_of(module)
    if mine is None:
        pytest.skip("in no layer; the test above says so")
    higher = {n: layer_of(n) for n in our_imports(path) if (layer_of(n) or 0) > mine}
    assert not higher, f"pythia_core.{module} (layer {mine}) imports {higher}"


def test_no_import_cycles() -> None:
    graph = {}
    for module, path in modules().items():
        names = imports_of(path, top_level_only=True)
        graph[module] = {n.removeprefix("pythia_core.") for n in names} & modules().keys()
    while graph:
        free = {module for module, needs in graph.items() if not needs & graph.keys()}
        assert free, f"modules that import each other: {sorted(graph)}"
        graph = {module: needs for module, needs in graph.items() if module not in free}


@pytest.mark.parametrize(("module", "path"), modules().items())
def test_rules_on_libraries(module: str, path: Path) -> None:
    everywhere = {name.split(".")[0] for name in imports_of(path)}
    at_import = {name.split(".")[0] for name in imports_of(path, top_level_only=True)}
    if module in DATA_MODULES:
        assert "torch" not in everywhere, "data modules do not import torch"
    if not module.startswith("kernels"):
        assert "triton" not in everywhere, "only kernels import Triton"
    if module != "distributed":
        assert not {n for n in imports_of(path) if n.startswith("torch.distributed")}
    if module.startswith("studies"):
        assert not everywhere & {"matplotlib", "seaborn"}, "studies never draw"
        assert "optim" not in our_imports(path), "studies never build an optimizer"
    if module.startswith("kernels.") and "_triton" in module:
        at_import -= {"triton"}  # nothing else imports these at the top, by the rule below
    else:
        late = {n for n in imports_of(path, top_level_only=True) if "_triton" in n}
        assert not late, f"{late} must be imported inside the functions that launch them"
    if module != "papermill_engine":  # papermill itself loads that one
        heavy = at_import & set(OPTIONAL)
        assert not heavy, f"{heavy} must be imported inside the functions that need it"
    assert not everywhere & {"pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}


def test_data_modules_load_without_torch() -> None:
    names = [f"pythia_core.{name}" for name in DATA_MODULES if name in modules()]
    code = f"import sys, {', '.join(names)}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], stdin=subprocess.DEVNULL).returncode == 0


def test_the_package_itself_loads_nothing_heavy() -> None:
    code = (
        "import sys, pythia_core, pythia_core.__main__, pythia_core.notebooks;"
        "heavy = {'torch', 'numpy', 'pandas', 'matplotlib'} & set(sys.modules);"
        "sys.exit(str(heavy) if heavy else 0)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], stdin=subprocess.DEVNULL, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
