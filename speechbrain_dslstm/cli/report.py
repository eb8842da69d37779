"""The command ``dslstm report``: a report of finished runs."""

from speechbrain_dslstm.cli.scripts import run_script, script_command

EXAMPLES = """
dslstm report runs --output=report
dslstm report runs/mine runs/other.json --output=report
"""


@script_command("report", "Report finished runs as HTML, Markdown and JSON.")
def report(arguments: tuple[str, ...]) -> None:
    """Report finished runs as HTML, Markdown and JSON."""
    run_script("report.py", "dslstm report", arguments, EXAMPLES)
