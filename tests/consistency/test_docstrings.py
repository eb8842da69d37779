"""Public names have docstrings that match their signatures, and type hints.

What a folder's ``__init__`` exports also has the headings Arguments, Returns
and Example, and its example has an expected output or raises nothing.
"""

import ast
import doctest
import re
from pathlib import Path

import pytest
import speechbrain
import torch
from speechbrain.inference.interfaces import Pretrained
from speechbrain.utils.metric_stats import MetricStats

REPOSITORY = Path(__file__).resolve().parents[2]
FILES = [
    path
    for folder in ("speechbrain_dslstm", "recipes")
    for path in sorted(REPOSITORY.glob(f"{folder}/**/*.py"))
    if "shipped" not in path.parts
]
# Methods that a base class documents
INHERITED = {
    name
    for base in (speechbrain.Brain, MetricStats, Pretrained, torch.nn.Module)
    for name in dir(base)
} - {"forward"}
FUNCTION = (ast.FunctionDef, ast.AsyncFunctionDef)
HEADING = re.compile(r"^(\w+)\n-{3,}$", re.MULTILINE)
ENTRY = re.compile(r"^(\*{0,2}\w+(?:, \*{0,2}\w+)*)(?: ?:.*)?$", re.MULTILINE)


def exported() -> set[str]:
    """Names that the folders' ``__init__`` and root modules export."""
    package = REPOSITORY / "speechbrain_dslstm"
    names = set()
    for stub in package.rglob("__init__.pyi"):
        for node in ast.parse(stub.read_text("utf-8")).body:
            names |= {alias.name for alias in node.names}
    for path in package.glob("*.py"):
        for node in ast.parse(path.read_text("utf-8")).body:
            if isinstance(node, ast.Assign) and isinstance(
                node.value, ast.List
            ):
                names |= set(ast.literal_eval(node.value))
    return names


def public(tree: ast.AST, inside: str = "") -> list[tuple[str, ast.AST]]:
    """Public classes, functions and methods, but not nested functions."""
    found = []
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, (*FUNCTION, ast.ClassDef)):
            if not node.name.startswith("_"):
                found.append((f"{inside}{node.name}", node))
                if isinstance(node, ast.ClassDef):
                    found += public(node, f"{node.name}.")
    return found


def signature(node: ast.AST, method: bool) -> list[ast.arg]:
    """Arguments that a caller gives."""
    if isinstance(node, ast.ClassDef):
        inits = [n for n in node.body if getattr(n, "name", "") == "__init__"]
        return signature(inits[0], True) if inits else []
    a = node.args
    names = [*a.posonlyargs, *a.args, *a.kwonlyargs]
    static = any("static" in ast.unparse(d) for d in node.decorator_list)
    names = names[1:] if method and not static else names
    return names + [one for one in (a.vararg, a.kwarg) if one]


def faults(name: str, node: ast.AST, full: bool) -> list[str]:
    """Faults of one public name."""
    doc = ast.get_docstring(node)
    if not doc:
        return ["no docstring"]
    parts = HEADING.split(doc)
    sections = dict(zip(parts[1::2], parts[2::2], strict=True))
    method = "." in name
    taken = [one.arg for one in signature(node, method)]
    listed = [
        one.strip(" *")
        for entry in ENTRY.findall(sections.get("Arguments", ""))
        for one in entry.split(",")
    ]
    found = []
    if ("Arguments" in sections or full and not method) and (
        listed != taken and taken
    ):
        found.append(f"Arguments are {taken}, documented are {listed}")
    if full and not method:
        if "Example" not in sections:
            found.append("no Example")
        elif not doctest.DocTestParser().get_examples(sections["Example"]):
            found.append("the Example runs nothing")
    return found


def unannotated(name: str, node: ast.AST) -> list[str]:
    """Arguments and results without a type hint."""
    if isinstance(node, ast.ClassDef):
        found = [one.arg for one in signature(node, True) if not one.annotation]
        return found
    found = [
        one.arg for one in signature(node, "." in name) if not one.annotation
    ]
    return found + ([] if node.returns else ["return"])


@pytest.mark.parametrize("check", ["docstrings", "type hints"])
def test_public_names(check):
    names, wrong = exported(), []
    for path in FILES:
        for name, node in public(ast.parse(path.read_text("utf-8"))):
            if name.split(".")[-1] in INHERITED and "." in name:
                continue
            if check == "docstrings":
                found = faults(name, node, name.split(".")[0] in names)
            else:
                found = unannotated(name, node)
            place = f"{path.relative_to(REPOSITORY)}:{node.lineno}: {name}"
            wrong += [f"{place}: {one}" for one in found]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("def f(): pass", ["no docstring"]),
        (
            'def f(a, b):\n    """F.\n\n    Arguments\n    ---------\n'
            '    a : int\n        A.\n    """',
            ["Arguments are ['a', 'b'], documented are ['a']", "no Example"],
        ),
        (
            'def f():\n    """F.\n\n    Example\n    -------\n    f()\n    """',
            ["the Example runs nothing"],
        ),
    ],
)
def test_the_check_itself(source, expected):
    ((name, node),) = public(ast.parse(source))
    assert faults(name, node, full=True) == expected
