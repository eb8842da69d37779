"""The command ``dslstm cross-validate``: all folds of one or several systems."""

from speechbrain_dslstm.cli.scripts import run_script, script_command

EXAMPLES = """
dslstm cross-validate dual_level --corpus=emodb --data_folder=EMODB --jobs=2
dslstm cross-validate ds_lstm dual_level --protocols session random --report=report
"""


@script_command(
    "cross-validate", "Train all folds of systems, and report the results."
)
def cross_validate(arguments: tuple[str, ...]) -> None:
    """Train all folds of systems, and report the results."""
    run_script(
        "cross_validate.py", "dslstm cross-validate", arguments, EXAMPLES
    )
