"""Writes a report as JSON, Markdown and one HTML file that needs nothing else.

The contents are those of ``sections.py``, the layout that of the templates.
"""

import base64
import json
from pathlib import Path

import yaml
from jinja2 import (
    Environment,
    PackageLoader,
    StrictUndefined,
    select_autoescape,
)

from speechbrain_dslstm.report.tables import sections
from speechbrain_dslstm.utils.files import replace_file

__all__ = ["read_yardsticks", "write_json", "write_report"]


def read_yardsticks(path):
    """Read results from elsewhere, to be shown beside ours.

    Arguments
    ---------
    path : str or pathlib.Path
        YAML with a list of mappings: corpus, protocol, normalization, system,
        ua (in per cent) and source.

    Returns
    -------
    list of dict
        The same, with ua in [0, 1].

    Raises
    ------
    ValueError
        A key is missing or unknown, or a UA is no percentage.

    Example
    -------
    >>> import tempfile
    >>> row = {"corpus": "emodb", "protocol": "session", "ua": 71.0}
    >>> row |= {"normalization": "training", "system": "SVM", "source": "ours"}
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder, "yardsticks.yaml")
    ...     _ = path.write_text(json.dumps([row]))
    ...     read_yardsticks(path)[0]["ua"]
    0.71
    """
    wanted = {"corpus", "protocol", "normalization", "system", "ua", "source"}
    rows = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    for row in rows:
        if set(row) != wanted:
            raise ValueError(
                f"{path}: {row} must have the keys {', '.join(sorted(wanted))}"
            )
        if not 1 < row["ua"] <= 100:
            raise ValueError(f"{path}: ua is {row['ua']}, expected per cent")
    return [{**row, "ua": row["ua"] / 100} for row in rows]


def write_report(report, folder):
    """Write report.json, report.md, report.html and the pictures.

    Arguments
    ---------
    report : dict
        What ``report.build_report`` returned.
    folder : str or pathlib.Path
        Made where it is missing; files of an older report are replaced.

    Returns
    -------
    pathlib.Path
        The HTML file. It holds its pictures; the Markdown links to them.

    Example
    -------
    >>> import tempfile
    >>> report = dict.fromkeys(("runs", "comparisons", "chains"), [])
    >>> report |= {"notes": [], "yardsticks": [], "reference": "dual_level"}
    >>> report |= {"resamples": 1000, "confidence": 0.95}
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     page = write_report(report, folder)
    ...     sorted(path.name for path in Path(folder).iterdir())
    ['pictures', 'report.html', 'report.json', 'report.md']
    """
    folder = Path(folder)
    (folder / "pictures").mkdir(parents=True, exist_ok=True)
    found = sections(report, folder / "pictures")
    environment = Environment(
        loader=PackageLoader("speechbrain_dslstm.report"),
        autoescape=select_autoescape(["html.j2"]),
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        undefined=StrictUndefined,
    )
    environment.filters["embed"] = lambda name: _embed(folder / name)
    for kind in ("md", "html"):
        template = environment.get_template(f"report.{kind}.j2")
        text = template.render(report=report, sections=found)
        replace_file(folder / f"report.{kind}", text)
    write_json(report, folder / "report.json")
    return folder / "report.html"


def write_json(report, path):
    """Write a report as compact JSON, a line for each of its items.

    Arguments
    ---------
    report : dict
        What ``report.build_report`` returned.
    path : str or pathlib.Path
        The file; its folder is made where it is missing.

    Example
    -------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder, "report.json")
    ...     write_json({"notes": [], "runs": [{"a": 1}, {"b": 2}]}, path)
    ...     print(path.read_text(), end="")
    {
    "notes":[],
    "runs":[
    {"a":1},
    {"b":2}]
    }
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)

    def dump(value):
        """As short as JSON gets."""
        return json.dumps(value, separators=(",", ":"))

    lines = []
    for key, value in report.items():
        text = dump(value)
        if isinstance(value, list) and value:
            text = "[\n" + ",\n".join(map(dump, value)) + "]"
        lines.append(f"{dump(key)}:{text}")
    replace_file(path, "{\n" + ",\n".join(lines) + "\n}\n")


def _embed(path):
    """A picture as a data URL."""
    data = base64.b64encode(path.read_bytes()).decode()
    return f"data:image/png;base64,{data}"
