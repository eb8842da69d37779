"""Writes a report as JSON, Markdown and one self-contained HTML file.

``templates/report.j2`` has the contents; ``html.j2`` and ``md.j2`` lay them out.
"""

import base64
import json
from collections.abc import Mapping
from pathlib import Path

import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined

from speechbrain_dslstm.report.opening import open_report
from speechbrain_dslstm.report.runs import NORMALIZATIONS
from speechbrain_dslstm.report.tables import FILTERS, group_by_task
from speechbrain_dslstm.splits.leaks import KINDS
from speechbrain_dslstm.splits.protocols import PROTOCOLS
from speechbrain_dslstm.utils.files import replace_file

__all__ = ["read_baselines", "write_json", "write_report"]

BASELINE = {"corpus", "protocol", "normalization", "system", "ua", "source"}
NAMES = {
    "KINDS": KINDS,
    "NORMALIZATIONS": NORMALIZATIONS,
    "PROTOCOLS": PROTOCOLS,
}


def read_baselines(path: str | Path) -> list[dict]:
    """Read results of other systems, to be shown beside the runs.

    Arguments
    ---------
    path
        YAML with a list of mappings: corpus, protocol, normalization, system,
        source and ua, which is in per cent here and in [0, 1] in the result.

    Raises
    ------
    ValueError
        A key is missing or unknown, or a UA is no percentage.

    Example
    -------
    >>> path = getfixture("tmp_path") / "baselines.yaml"
    >>> row = {"corpus": "emodb", "protocol": "session", "ua": 71.0}
    >>> row |= {"normalization": "training", "system": "SVM", "source": "ours"}
    >>> _ = path.write_text(json.dumps([row]))
    >>> read_baselines(path)[0]["ua"]
    0.71
    """
    rows = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    for row in rows:
        if set(row) != BASELINE:
            keys = ", ".join(sorted(BASELINE))
            raise ValueError(f"{path}: {row} must have the keys {keys}")
        if not 1 < row["ua"] <= 100:
            raise ValueError(f"{path}: ua is {row['ua']}, expected per cent")
    return [{**row, "ua": row["ua"] / 100} for row in rows]


def write_report(report: Mapping, folder: str | Path) -> Path:
    """Write report.json, report.md, report.html and the pictures.

    The HTML file, which is returned, contains its pictures; the Markdown file
    links to them.

    Arguments
    ---------
    report
        From ``build_report``.
    folder
        Created if missing; files of an older report are replaced.

    Example
    -------
    >>> report = dict.fromkeys(("runs", "comparisons", "chains"), [])
    >>> report |= {"notes": [], "baselines": [], "reference": "dual_level"}
    >>> report |= {"resamples": 1000, "confidence": 0.95}
    >>> page = write_report(report, getfixture("tmp_path"))
    >>> sorted(path.name for path in page.parent.iterdir())
    ['pictures', 'report.html', 'report.json', 'report.md']
    """
    folder = Path(folder)
    pictures = folder / "pictures"
    pictures.mkdir(parents=True, exist_ok=True)
    groups = group_by_task(report, pictures)
    opening = open_report(report)
    for kind in ("md", "html"):
        environment = Environment(
            loader=PackageLoader("speechbrain_dslstm.report"),
            autoescape=kind == "html",
            trim_blocks=True,
            lstrip_blocks=True,
            keep_trailing_newline=True,
            undefined=StrictUndefined,
        )
        environment.globals |= NAMES
        environment.filters |= FILTERS
        environment.filters["base64"] = lambda name: base64.b64encode(
            (folder / name).read_bytes()
        ).decode()
        text = environment.get_template("report.j2").render(
            layout=f"{kind}.j2", report=report, groups=groups, opening=opening
        )
        replace_file(folder / f"report.{kind}", text)
    write_json(report, folder / "report.json")
    return folder / "report.html"


def write_json(report: Mapping, path: str | Path) -> None:
    """Write a report as compact JSON, one line for each item of its lists.

    Arguments
    ---------
    report
        From ``build_report``.
    path
        The file; its folder is created if missing.

    Example
    -------
    >>> path = getfixture("tmp_path") / "report.json"
    >>> write_json({"runs": [{"a": 1}, {"b": 2}]}, path)
    >>> print(path.read_text(), end="")
    {
    "runs":[
    {"a":1},
    {"b":2}]
    }
    """
    encode = json.JSONEncoder(separators=(",", ":")).encode
    lines = []
    for key, value in report.items():
        text = encode(value)
        if isinstance(value, list) and value:
            text = "[\n" + ",\n".join(map(encode, value)) + "]"
        lines.append(f"{encode(key)}:{text}")
    replace_file(path, "{\n" + ",\n".join(lines) + "\n}\n")
