"""Every public class and function explains itself, as SpeechBrain demands.

SpeechBrain's own check reads files line by line and only asks whether there
is a docstring. This one reads the syntax tree, and asks for more: headings
that fit the signature, and an example that can fail. It also refuses what
the host's line reader stumbles over.
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
PACKAGE = "speechbrain_dslstm"
FILES = sorted(
    path.relative_to(REPOSITORY).as_posix()
    for folder in (PACKAGE, "recipes")
    for path in REPOSITORY.glob(f"{folder}/**/*.py")
    # A model folder's file is as train.py writes it
    if path.parts[-3] != "shipped"
)
# What a subclass only overrides, its base documents
BASES = {
    "Brain": dir(speechbrain.Brain),
    "MetricStats": dir(MetricStats),
    "Pretrained": dir(Pretrained),
    "Module": set(dir(torch.nn.Module)) - {"forward"},
}
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
HEADING = re.compile(r"^(\w[\w ]*)\n(-{3,})$", re.MULTILINE)
ENTRY = re.compile(r"^(\*{0,2}\w+(?:, \*{0,2}\w+)*)(?: ?:.*)?$")


def walk(node, chain=()):
    """Yield each class and function with those it stands in."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, (*FUNCTIONS, ast.ClassDef)):
            yield child, chain
            yield from walk(child, (*chain, child))
        else:
            yield from walk(child, chain)


def own_nodes(function):
    """Yield the nodes of a function, without those of nested ones."""
    for child in ast.iter_child_nodes(function):
        if not isinstance(child, (*FUNCTIONS, ast.ClassDef, ast.Lambda)):
            yield child
            yield from own_nodes(child)


def arguments(function, method):
    """Names of the arguments that a caller gives."""
    a = function.args
    names = [x.arg for x in (*a.posonlyargs, *a.args)]
    static = "staticmethod" in decorators(function)
    if method and not static:
        names = names[1:]
    # torch.autograd.Function hands its context in
    names = [name for name in names if name != "ctx"]
    names += [x.arg for x in (a.vararg, *a.kwonlyargs, a.kwarg) if x]
    return [name for name in names if not name.startswith("_")]


def decorators(node):
    """Names of the decorators: "property", "setter", "staticmethod"."""
    found = set()
    for item in node.decorator_list:
        item = item.func if isinstance(item, ast.Call) else item
        found.add(item.attr if isinstance(item, ast.Attribute) else item.id)
    return found


def sections(doc):
    """Split a docstring at its headings."""
    parts = HEADING.split(doc)
    texts = {}
    for title, line, text in zip(
        parts[1::3], parts[2::3], parts[3::3], strict=True
    ):
        texts[title] = (text, len(line) == len(title))
    return texts


def documented(text):
    """Names that a section explains: the lines that are not indented."""
    names = []
    for line in text.split("\n"):
        match = ENTRY.match(line)
        if match:
            names += [n.strip(" *") for n in match[1].split(",")]
    return names


def base_names(node):
    """Last names of a class's bases: "Brain" of speechbrain.Brain."""
    return {ast.unparse(base).split(".")[-1] for base in node.bases}


def is_override(node, chain):
    """Whether the base class already documents the method."""
    if not chain or not isinstance(chain[-1], ast.ClassDef):
        return False
    return any(
        node.name in BASES.get(base, ()) for base in base_names(chain[-1])
    )


def check_sections(node, chain, doc, example):
    """Yield what the headings of a public name lack."""
    found = sections(doc)
    for title, (_, underlined) in found.items():
        if not underlined:
            yield f'"{title}" is not underlined to its length'

    is_class = isinstance(node, ast.ClassDef)
    method = bool(chain) and isinstance(chain[-1], ast.ClassDef)
    if is_class:
        inits = [
            x
            for x in node.body
            if isinstance(x, FUNCTIONS) and x.name == "__init__"
        ]
        wanted = arguments(inits[0], True) if inits else []
        if inits and base_names(node) & BASES.keys():
            # Handed on to the base class, which explains them
            forwarded = (inits[0].args.vararg, inits[0].args.kwarg)
            names = {x.arg for x in forwarded if x}
            wanted = [name for name in wanted if name not in names]
    else:
        wanted = arguments(node, method)
    if "property" in decorators(node) or "setter" in decorators(node):
        return

    if wanted and "Arguments" not in found:
        yield f'no "Arguments", though it takes {", ".join(wanted)}'
    elif "Arguments" in found:
        given = documented(found["Arguments"][0])
        missing = [name for name in wanted if name not in given]
        extra = [name for name in given if name not in wanted]
        if missing:
            yield f'"Arguments" leaves out {", ".join(missing)}'
        # A dataclass has its arguments written as fields
        if extra and (not is_class or inits):
            yield f'"Arguments" has {", ".join(extra)}, which it does not take'

    if not is_class:
        nodes = list(own_nodes(node))
        returns = any(
            isinstance(x, ast.Return)
            and x.value is not None
            and not (
                isinstance(x.value, ast.Constant) and x.value.value is None
            )
            for x in nodes
        )
        yields = any(isinstance(x, ast.Yield | ast.YieldFrom) for x in nodes)
        if yields and not {"Yields", "Returns"} & set(found):
            yield 'no "Yields"'
        elif returns and "Returns" not in found:
            yield 'no "Returns"'

    if example and not chain:
        if "Example" not in found:
            yield 'no "Example"'
            return
        examples = doctest.DocTestParser().get_examples(found["Example"][0])
        if not examples:
            yield 'an "Example" without >>>'
        elif not any(x.want or "assert " in x.source for x in examples):
            yield 'an "Example" that cannot fail: it expects no output'


def check_line_reader(doc, quotes_line):
    """Yield what misleads SpeechBrain's own check."""
    if "..." in quotes_line or ">>>" in quotes_line:
        yield 'the first line holds "..." or ">>>"'
    for line in doc.split("\n"):
        line = line.strip()
        if re.match(r"class\s.*:|def\s.*\(.*\):", line):
            yield f'a line begins like code: "{line}"'


def check_source(source, example):
    """List everything that a file's docstrings lack.

    Public is what has no leading underscore, and stands neither in something
    that has one nor in a function. SpeechBrain wants a docstring, if no
    headings, for private classes and for all names without an underscore.
    """
    tree = ast.parse(source)
    lines = source.split("\n")
    problems = []
    if not ast.get_docstring(tree):
        problems.append("line 1: the module has no docstring")
    for node, chain in walk(tree):
        is_class = isinstance(node, ast.ClassDef)
        doc = ast.get_docstring(node)
        where = f"line {node.lineno}: {node.name}: "
        if not doc:
            if is_class or not node.name.startswith("_"):
                problems.append(f"{where}no docstring")
            continue
        found = list(check_line_reader(doc, lines[node.body[0].lineno - 1]))
        public = not any(
            x.name.startswith("_") for x in (*chain, node)
        ) and not any(isinstance(x, FUNCTIONS) for x in chain)
        if public and not is_override(node, chain):
            found += check_sections(node, chain, doc, example)
        problems += [where + problem for problem in found]
    return problems


@pytest.mark.parametrize("file", FILES)
def test_docstrings(file):
    """No file of the package or the recipes lacks anything.

    Doctests of recipes would not be run, so none are asked for.
    """
    source = (REPOSITORY / file).read_text("utf-8")
    problems = check_source(source, example=file.startswith(PACKAGE))
    assert not problems, "\n".join(["", *(f"{file}, {p}" for p in problems)])


GOOD = '''
"""A module."""


def double(x):
    """Double a number.

    Arguments
    ---------
    x : int
        The number.

    Returns
    -------
    int
        Twice the number.

    Example
    -------
    >>> double(2)
    4
    """
    return 2 * x
'''


@pytest.mark.parametrize(
    "old, new, problem",
    [
        ("", "", None),
        ('"""A module."""', "", "module has no docstring"),
        ("Arguments\n    ---------", "", 'no "Arguments"'),
        ("    x : int", "    y : int", "leaves out x"),
        ("    x : int", "    x, y : int", "which it does not take"),
        ("Returns\n    -------", "", 'no "Returns"'),
        ("return 2 * x", "print(x)", None),
        ("    -------\n    int", "    ------\n    int", "underlined"),
        ("Example\n    -------", "", 'no "Example"'),
        (">>> double(2)", "double(2)", "without >>>"),
        ("    4\n", "", "cannot fail"),
        ("Double a number.", "Double ...", "first line holds"),
        ("Twice the number.", "def f(x): no.", "begins like code"),
        ("def double", "def _double", None),
        (GOOD, '"""A module."""\n\n\nclass _A:\n    a = 1\n', "no docstring"),
    ],
)
def test_the_check_itself(old, new, problem):
    """Each fault is found, and a file without one is left alone."""
    found = check_source(GOOD.replace(old, new) if old else GOOD, True)
    if problem is None:
        assert found == []
    else:
        assert any(problem in line for line in found), found
