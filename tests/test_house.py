"""The house as CONTRIBUTING promises it: few modules, a name for each, no circle, and short import chains."""

import ast
from collections import Counter
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import transprune

ROOT = Path(transprune.__file__).parent


def modules() -> dict[str, Path]:
    """Every module by its dotted name; a package is its `__init__`."""
    found = {}
    for path in ROOT.rglob("*.py"):
        parts = path.relative_to(ROOT.parent).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imported(path: Path, known: dict[str, Path]) -> set[str]:
    """Modules of the project that a module imports when it is imported itself."""
    names: set[str] = set()
    for statement in _at_import(ast.parse(path.read_text(encoding="utf-8")).body):
        if isinstance(statement, ast.ImportFrom):
            inner = {f"{statement.module}.{alias.name}" for alias in statement.names}
            names |= (inner & known.keys()) or {statement.module}
        else:
            names |= {alias.name for alias in statement.names}
    return names & known.keys()


def _at_import(body):
    for statement in body:
        match statement:
            case ast.If(test=ast.Name(id="TYPE_CHECKING")):
                pass
            case ast.If():
                yield from _at_import(statement.body + statement.orelse)
            case ast.Try() | ast.With():
                yield from _at_import(statement.body)
            case ast.Import() | ast.ImportFrom():
                yield statement


def imports() -> dict[str, set[str]]:
    known = modules()
    return {name: imported(path, known) - {name} for name, path in known.items()}


def chain(graph: dict[str, set[str]]) -> list[str]:
    """The longest way from a module through what it imports."""

    @cache
    def from_(name: str) -> tuple[str, ...]:
        return (name, *max(map(from_, graph[name]), key=len, default=()))

    return list(max(map(from_, graph), key=len))


def test_no_import_closes_a_circle():
    list(TopologicalSorter(imports()).static_order())


def test_import_chains_are_short():
    longest = chain(imports())
    assert len(longest) <= 20, " → ".join(longest)


def test_modules_are_few():
    assert len(modules()) <= 141


def test_no_two_modules_have_one_name():
    names = Counter(path.stem for path in modules().values())
    assert [name for name, count in names.items() if count > 1 and name != "__init__"] == []


def test_a_circle_is_seen():
    graph = {"a": {"b"}, "b": {"c"}, "c": set()}
    assert chain(graph) == ["a", "b", "c"]
    imported_names = imported(ROOT / "budget.py", modules())
    assert {"transprune.costs", "transprune.errors"} <= imported_names
