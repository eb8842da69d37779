"""Public names have docstrings that match their signatures, and type hints.

What a folder's ``__init__`` or a root module exports also has the headings
Arguments and Example where they apply, and its example runs something.
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
PACKAGE = REPOSITORY / "speechbrain_dslstm"
FILES = [
    path
    for folder in (PACKAGE, REPOSITORY / "recipes")
    for path in sorted(folder.rglob("*.py"))
    if "shipped" not in path.parts
]
# Methods that a base class documents
INHERITED = {
    name
    for base in (speechbrain.Brain, MetricStats, Pretrained, torch.nn.Module)
    for name in dir(base)
} - {"forward"}
DEFINITION = (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
HEADING = re.compile(r"^(\w+)\n-{3,}$", re.MULTILINE)
COMMAND = re.compile(r"(click\.)?(command|group)\(")
ENTRY = re.compile(r"^(\*{0,2}\w+(?:, \*{0,2}\w+)*)(?: ?:.*)?$", re.MULTILINE)


def exported():
    """Names in the folders' ``__init__.pyi`` and in root modules' ``__all__``."""
    names = set()
    for stub in PACKAGE.rglob("__init__.pyi"):
        for node in ast.parse(stub.read_text("utf-8")).body:
            # Without a module, the names are folders and modules
            if node.module:
                names |= {alias.name for alias in node.names}
    for path in PACKAGE.glob("*.py"):
        for node in ast.parse(path.read_text("utf-8")).body:
            if ast.unparse(node).startswith("__all__"):
                names |= set(ast.literal_eval(node.value))
    return names


def public(tree, inside=""):
    """Public classes, functions and methods, without nested functions.

    A command's docstring is its help, and its arguments are options.
    """
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, DEFINITION) and not node.name.startswith("_"):
            if any(COMMAND.match(ast.unparse(d)) for d in node.decorator_list):
                continue
            yield f"{inside}{node.name}", node
            if isinstance(node, ast.ClassDef):
                yield from public(node, f"{node.name}.")


def arguments(name, node):
    """Arguments that a caller passes; of a class, of ``__init__`` or fields."""
    if isinstance(node, ast.ClassDef):
        for part in node.body:
            if getattr(part, "name", "") in ("__init__", "__new__"):
                return arguments(f"{name}.{part.name}", part)
        return [
            ast.arg(ast.unparse(part.target), part.annotation)
            for part in node.body
            if isinstance(part, ast.AnnAssign)
        ]
    a = node.args
    found = [*a.posonlyargs, *a.args, *a.kwonlyargs]
    static = any("static" in ast.unparse(d) for d in node.decorator_list)
    found = found[1:] if "." in name and not static else found
    return found + [one for one in (a.vararg, a.kwarg) if one]


def docstring_faults(name, node, full):
    """Faults of one docstring; ``full`` requires the headings."""
    doc = ast.get_docstring(node)
    if not doc:
        return ["no docstring"]
    parts = HEADING.split(doc)
    sections = dict(zip(parts[1::2], parts[2::2], strict=True))
    full = full and "." not in name
    taken = [one.arg for one in arguments(name, node)]
    listed = [
        one.strip(" *")
        for entry in ENTRY.findall(sections.get("Arguments", ""))
        for one in entry.split(",")
    ]
    found = []
    if (full or "Arguments" in sections) and listed != taken:
        found.append(f"arguments are {taken}, documented are {listed}")
    if full and "Example" not in sections:
        found.append("no Example")
    elif full and not doctest.DocTestParser().get_examples(sections["Example"]):
        found.append("the Example runs nothing")
    return found


def hint_faults(name, node, full):
    """Arguments, and the result, without a type hint."""
    found = [one.arg for one in arguments(name, node) if not one.annotation]
    if not isinstance(node, ast.ClassDef) and not node.returns:
        found.append("return")
    return found


@pytest.mark.parametrize("check", [docstring_faults, hint_faults])
def test_public_names(check):
    names, wrong = exported(), []
    for path in FILES:
        for name, node in public(ast.parse(path.read_text("utf-8"))):
            if "." in name and name.split(".")[-1] in INHERITED:
                continue
            full = PACKAGE in path.parents and name in names
            place = f"{path.relative_to(REPOSITORY)}:{node.lineno}: {name}"
            wrong += [f"{place}: {one}" for one in check(name, node, full)]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(
    ("source", "docstring", "hints"),
    [
        ("def f(): pass", ["no docstring"], ["return"]),
        (
            'def f(a: int, b) -> int:\n    """F.\n\n    Arguments\n    ---------'
            '\n    a\n        A.\n    """',
            ["arguments are ['a', 'b'], documented are ['a']", "no Example"],
            ["b"],
        ),
        (
            'def f() -> int:\n    """F.\n\n    Example\n    -------\n    f()\n'
            '    """',
            ["the Example runs nothing"],
            [],
        ),
    ],
)
def test_the_check_itself(source, docstring, hints):
    ((name, node),) = public(ast.parse(source))
    assert docstring_faults(name, node, full=True) == docstring
    assert hint_faults(name, node, full=True) == hints
