"""Build the documentation site: ``sphinx-build -W docs site``.

The site consists of the pages in this folder, the READMEs of other folders
(copied to ``generated/`` with their links rewritten) and the API reference, which
is made from what each folder of the package exports.
"""

import ast
import json
import os
import re
import shutil
from importlib.metadata import version as installed_version
from pathlib import Path

from sphinx.application import Sphinx

HERE = Path(__file__).parent
REPOSITORY = HERE.parent
PACKAGE = REPOSITORY / "speechbrain_dslstm"

project = "speechbrain-dslstm"
author = "The speechbrain-dslstm authors"
project_copyright = author
version = release = installed_version(project)

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
]
html_theme = "furo"
html_title = f"{project} {release}"
exclude_patterns = ["requirements.txt"]
myst_heading_anchors = 4
# The notebook is shown with the outputs that it has in the repository
nb_execution_mode = "off"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented_params"
autodoc_member_order = "bysource"
copybutton_exclude = ".linenos, .gp, .go"
# Numbered lists of the changelog and notes of the READMEs repeat headings
# Words of a shape, such as [batch, dimensions], are no references
suppress_warnings = ["myst.header", "ref.python"]

# READMEs of other folders that are pages of the site
READMES = {
    "README.md": "index",
    "hparams/README.md": "systems",
    "recipes/emotion_recognition/README.md": "recipes",
    "tests/README.md": "faults",
    "data/emodb/README.md": "emodb",
    "speechbrain_dslstm/shipped/emotion-dslstm-whisper/README.md": "whisper",
    "speechbrain_dslstm/shipped/emotion-dslstm-whisper-emodb/README.md": "free",
    "speechbrain_dslstm/shipped/emotion-dslstm-emodb/README.md": "stream",
    "CHANGELOG.md": "changelog",
}
# Pages of the menu, some with a title of their own
CONTENTS = {
    "Use": ["first-model", "own-data", "inference", "scale", "compose"],
    "Models": ["generated/whisper", "generated/free", "generated/stream"],
    "Train": [
        "Corpora, protocols, reports <generated/recipes>",
        "Systems <generated/systems>",
        "EMO-DB <generated/emodb>",
    ],
    "Reference": [
        *("results", "performance"),
        "What goes wrong <generated/faults>",
        *("generated/api", "generated/changelog"),
    ],
}
PAGES = (".md", ".ipynb")
LINK = re.compile(r"(?<!\!)\[([^\]]+)\]\((?!\w+:|#)([^)#]+)(#[^)]*)?\)")
IMAGE = re.compile(r"!\[([^\]]*)\]\((?!\w+:)([^)]+)\)")


def rewrite_links(text: str, source: Path, target: Path) -> str:
    """Point the links of a file in the repository to pages of the site.

    A link to a file that is no page becomes its text.
    """

    def relative(path: Path) -> str:
        return os.path.relpath(path, target.parent).replace(os.sep, "/")

    def page(match: re.Match) -> str:
        words, path, anchor = match.groups(default="")
        found = (source.parent / path).resolve()
        name = found.relative_to(REPOSITORY).as_posix()
        if found.parent == HERE and found.suffix in PAGES:
            return f"[{words}]({relative(found)}{anchor})"
        if name in READMES:
            found = HERE / _place(READMES[name])
            return f"[{words}]({relative(found)}{anchor})"
        if name == "speechbrain_dslstm/__init__.py":
            return f"[{words}]({relative(HERE / 'generated/api.md')})"
        return words

    def picture(match: re.Match) -> str:
        path = relative((source.parent / match[2]).resolve())
        return f"![{match[1]}]({path})"

    return IMAGE.sub(picture, LINK.sub(page, text))


def _place(name: str) -> str:
    return "index.md" if name == "index" else f"generated/{name}.md"


def write_readmes() -> None:
    """Write the READMEs as pages; the first one gets the table of contents."""
    for path, name in READMES.items():
        source, target = REPOSITORY / path, HERE / _place(name)
        text = rewrite_links(source.read_text("utf-8"), source, target)
        if name == "index":
            for caption, pages in CONTENTS.items():
                lines = "\n".join(pages)
                text += f"\n```{{toctree}}\n:hidden:\n:caption: {caption}\n\n{lines}\n```\n"
        target.write_text(text, "utf-8")


def _source(page: str) -> Path | None:
    """The file of a page in this folder."""
    paths = [HERE / f"{page}{suffix}" for suffix in PAGES]
    return next((one for one in paths if one.is_file()), None)


def exported(stub: Path) -> list[str]:
    """Names that a folder's ``__init__.pyi`` exports, in its order."""
    return [
        alias.asname
        for node in ast.parse(stub.read_text("utf-8")).body
        if isinstance(node, ast.ImportFrom) and node.module
        for alias in node.names
        # Constants have no docstring of their own
        if not re.fullmatch(r"[A-Z_]{4,}", alias.asname)
        or "DSLSTM" in alias.asname
    ]


def write_api() -> None:
    """Write a page for each folder that exports names."""
    folder = HERE / "generated" / "api"
    folder.mkdir(exist_ok=True)
    pages = []
    for stub in sorted(PACKAGE.glob("*/__init__.pyi")):
        name = f"speechbrain_dslstm.{stub.parent.name}"
        lines = [stub.parent.name, "=" * len(stub.parent.name), ""]
        lines += [f".. automodule:: {name}", "   :no-members:", ""]
        for one in exported(stub):
            kind = "autoclass" if one[0].isupper() else "autofunction"
            lines += [f".. {kind}:: {name}.{one}"]
            if kind == "autoclass":
                lines += ["   :members:", "   :exclude-members: forward"]
            lines += [""]
        (folder / f"{stub.parent.name}.rst").write_text(
            "\n".join(lines), "utf-8"
        )
        pages.append(f"api/{stub.parent.name}")
    text = "# API reference\n\nWhat each folder of the package exports.\n\n"
    text += "```{toctree}\n" + "\n".join(pages) + "\n```\n"
    (HERE / "generated" / "api.md").write_text(text, "utf-8")


def setup(app: Sphinx) -> None:
    """Write the generated pages before Sphinx looks for its sources."""
    # A page that was renamed must not stay
    shutil.rmtree(HERE / "generated", ignore_errors=True)
    (HERE / "generated").mkdir()
    write_readmes()
    write_api()
    app.connect("source-read", _rewrite_page)


def _rewrite_page(app: Sphinx, name: str, content: list[str]) -> None:
    path = _source(name)
    if path is None or name == "index" or path.parent != HERE:
        return
    if path.suffix == ".md":
        content[0] = rewrite_links(content[0], path, path)
        return
    notebook = json.loads(content[0])
    for cell in notebook["cells"]:
        if cell["cell_type"] == "markdown":
            cell["source"] = rewrite_links("".join(cell["source"]), path, path)
    content[0] = json.dumps(notebook)
