"""Which module may import which, and which libraries belong where.

Every import counts, including those inside functions and under `if TYPE_CHECKING`.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest
import pythia_book

import pythia_core
from pythia_core.util import extensions

PACKAGES = {
    package.__name__: Path(package.__file__).parent for package in (pythia_core, pythia_book)
}
NEEDED_BY_CORE = {"torch", "filelock", "numpy", "tokenizers", "safetensors", "tqdm"}
OPTIONAL_IN_CORE = {
    "pythia_core.data.user_files": {"datasets", "fsspec", "pyarrow"},
    "pythia_book.term_counts": {"pyarrow"},
    "pythia_core.data.dedup": {"datatrove", "networkx"},
    "pythia_core.data.sharded_dedup": {"datatrove", "networkx"},
    "pythia_core.util.launch": {"submitit"},
    "pythia_core.kernels.attention_backends": {"flash_attn", "flash_attn_interface"},
}
"""Libraries that only one module imports, when it is asked for what needs them."""
WITHOUT_TORCH = ("data", "config", "errors", "suite", "util", "training.schedule")
MANY_PROCESSES = ("pythia_core.training.distributed", "pythia_core.training.sharding")
"""The modules that use torch.distributed."""
HEAVY = (
    "datasets datatrove flash_attn lm_eval matplotlib papermill seaborn transformers triton"
).split()


def modules() -> dict[str, Path]:
    """Every module of both packages by its dotted name."""
    found = {}
    for package, folder in PACKAGES.items():
        for path in sorted(folder.rglob("*.py")):
            parts = [package, *path.relative_to(folder).with_suffix("").parts]
            found[".".join(parts).removesuffix(".__init__")] = path
    return found


MODULES = modules()


def imports_of(module: str, top_level_only: bool = False) -> set[str]:
    """Names that a module imports: "torch", or the longest name of one of our own modules."""
    names = set()
    stack: list[ast.AST] = [ast.parse(MODULES[module].read_text(encoding="utf-8"))]
    while stack:
        node = stack.pop()
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide who is imported"
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                names.add(whole if whole in MODULES else str(node.module))
        lazy = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda) or (
            isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        )
        if not (lazy and top_level_only):
            stack += ast.iter_child_nodes(node)
    return names


def ours(module: str) -> set[str]:
    return {name for name in imports_of(module) if name in MODULES and name != module}


def rooms(package: str) -> list[str]:
    """The rooms of a package in the order of the map in its docstring."""
    doc = sys.modules[package].__doc__ or ""
    return re.findall(r"^    (\w+) {2,}\S", doc, flags=re.MULTILINE)


def room_of(module: str) -> str:
    return module.split(".")[1] if "." in module else ""


def test_the_map_names_every_room_of_the_library() -> None:
    visible = [p for p in PACKAGES["pythia_core"].iterdir() if p.name[0] not in "_."]
    entries = {p.stem for p in visible if p.is_dir() or p.suffix == ".py"}
    assert entries == set(rooms("pythia_core"))
    visible = [p for p in PACKAGES["pythia_core"].iterdir() if p.name != "__pycache__"]
    assert len(visible) <= 14


def test_the_library_imports_nothing_of_the_book() -> None:
    for module in MODULES:
        if module.startswith("pythia_core"):
            climbs = {name for name in imports_of(module) if name.startswith("pythia_book")}
            assert not climbs, f"{module} imports {climbs}"


def test_no_room_of_the_library_imports_one_below_it() -> None:
    order = rooms("pythia_core")
    for module in MODULES:
        if module.startswith("pythia_core.") and room_of(module) in order:
            place = order.index(room_of(module))
            below = {n for n in ours(module) if room_of(n) in order[place + 1 :]}
            assert not below, f"{module} imports {below}"


def circles(graph: dict[str, set[str]]) -> list[str]:
    """What is left after repeatedly removing everything that needs nothing of the rest."""
    graph = {name: set(needs) for name, needs in graph.items()}
    while free := {name for name, needs in graph.items() if not needs & graph.keys()}:
        graph = {name: needs for name, needs in graph.items() if name not in free}
    used = {need for needs in graph.values() for need in needs}
    return sorted(graph.keys() & used)


def test_a_circle_would_be_seen() -> None:
    assert circles({"a": {"b"}, "b": {"c"}, "c": set()}) == []
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": {"a"}}) == ["a", "b", "c"]


def test_no_circles() -> None:
    assert circles({module: ours(module) for module in MODULES}) == []


def test_the_library_needs_five_packages() -> None:
    standard = set(sys.stdlib_module_names) | set(PACKAGES)
    for module in MODULES:
        if not module.startswith("pythia_core"):
            continue
        foreign = {n.split(".")[0] for n in imports_of(module)} - standard - NEEDED_BY_CORE
        if module.startswith("pythia_core.kernels"):
            foreign -= {"triton"}
        extra = foreign - OPTIONAL_IN_CORE.get(module, set())
        assert not extra, f"{module} imports {extra}"


@pytest.mark.parametrize("module", MODULES)
def test_rules_on_libraries(module: str) -> None:
    everywhere = {name.split(".")[0] for name in imports_of(module)}
    at_import = {name.split(".")[0] for name in imports_of(module, top_level_only=True)}
    if module.startswith("pythia_core.data"):
        assert "torch" not in everywhere, "data modules do not import torch"
    if "kernels" not in module and not module.startswith("pythia_book.bench"):
        assert "triton" not in everywhere, "only kernels import Triton"
    if module not in MANY_PROCESSES:
        assert not {n for n in imports_of(module) if n.startswith("torch.distributed")}
    if module.startswith("pythia_book.studies") and not module.endswith("figures"):
        assert not everywhere & {"matplotlib", "seaborn"}, "only figures draw"
        assert "pythia_core.training.optimizer" not in ours(module) or ".errata." in module
    if module.startswith("pythia_core.kernels.") and "_triton" in module:
        at_import -= {"triton"}  # nothing else imports these at the top, by the rule below
    else:
        late = {n for n in imports_of(module, top_level_only=True) if "_triton" in n}
        assert not late, f"{late} must be imported inside the functions that launch them"
    if module != "pythia_book.papermill_engine":  # papermill itself loads that one
        heavy = at_import & set(HEAVY)
        assert not heavy, f"{heavy} must be imported inside the functions that need it"
    assert not everywhere & {"pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}


def test_light_modules_load_without_torch() -> None:
    light = tuple(f"pythia_core.{name}" for name in WITHOUT_TORCH)
    names = [m for m in MODULES if m in light or m.startswith(tuple(f"{n}." for n in light))]
    assert "pythia_core.data.prepare" in names and "pythia_core.suite" in names
    code = f"import sys, {', '.join(names)}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], stdin=subprocess.DEVNULL).returncode == 0


def test_the_packages_themselves_load_nothing_heavy() -> None:
    code = (
        "import sys, pythia_core, pythia_book, pythia_core.__main__, pythia_book.notebooks;"
        "pythia_core.__main__.parser();"
        "heavy = {'torch', 'numpy', 'pandas', 'matplotlib'} & set(sys.modules);"
        "sys.exit(str(heavy) if heavy else 0)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], stdin=subprocess.DEVNULL, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_what_the_book_adds_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    extensions.registered.cache_clear()
    monkeypatch.setattr(extensions, "entry_points", lambda group: ())
    for group, names in pythia_book.EXTENSIONS.items():
        points = extensions.registered(group)
        assert {name: point.value for name, point in points.items()} == names
        assert all(point.load() for point in points.values())
    extensions.registered.cache_clear()
