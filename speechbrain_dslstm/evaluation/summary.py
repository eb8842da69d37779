"""The results of a run as the console shows them, and what to try next."""

import importlib.util
import os
import shlex
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from speechbrain_dslstm.evaluation.metrics import format_confusion

__all__ = ["commands_to_try", "describe_speakers", "summarize_results"]

# Options of one fold, which a cross-validation sets itself
OF_A_FOLD = ("fold", "output_folder", "noprogressbar", "test_only", "debug")


def describe_speakers(results: Mapping[str, Any]) -> str:
    """Say whether the speakers of the test subset are in the training, too.

    ``results`` are those of ``write_results``. Their ``test_speakers`` is the
    number of speakers, or None if some clips have no speaker.

    >>> shared = {
    ...     name: {"speaker": {"count": 0}} for name in ("train", "valid")
    ... }
    >>> describe_speakers({"test_speakers": 2, "leaks": shared})
    'on 2 speakers that the model never heard'
    >>> shared["train"]["speaker"]["count"] = 2
    >>> describe_speakers({"test_speakers": 2, "leaks": shared})
    'on 2 speakers, all of them in training as well'
    """
    number, shared = results["test_speakers"], results["leaks"]
    if number is None:
        return (
            "on speakers that are not known, so the model may have heard them"
        )
    people = "1 speaker" if number == 1 else f"{number} speakers"
    heard = shared["train"]["speaker"]["count"]
    if heard:
        some = "all" if heard == number else str(heard)
        return f"on {people}, {some} of them in training as well"
    if shared["valid"]["speaker"]["count"]:
        return f"on {people}, not in training, but in validation"
    if results.get("init_from"):
        return (
            f"on {people}, not in this training; whether the model that it "
            "began with had heard them is not known"
        )
    return f"on {people} that the model never heard"


def describe_calibration(found: Mapping[str, Any]) -> str:
    """Say what the temperature does to the calibration of the test clips.

    >>> found = {"temperature": 1.0, "ece_before": 0.1, "ece_after": 0.1}
    >>> describe_calibration(found | {"fitted_on": "1 validation speaker"})
    'calibration error on the test clips: 0.100 (no temperature: not shown to help)'
    >>> describe_calibration(found | {"fitted_on": None})
    'calibration error on the test clips: 0.100 (no temperature: no clips to fit it on)'
    """
    before, after = (round(found[f"ece_{k}"], 3) for k in ("before", "after"))
    what = f"calibration error on the test clips: {before:.3f}"
    if found["fitted_on"] is None:
        return f"{what} (no temperature: no clips to fit it on)"
    if found["temperature"] == 1:
        return f"{what} (no temperature: not shown to help)"
    change = "worse" if after > before else "better"
    change = "the same" if after == before else change
    return (
        f"{what}, and {after:.3f} ({change}) with temperature "
        f"{found['temperature']:.2f}, fitted on {found['fitted_on']}"
    )


def summarize_results(results: Mapping[str, Any]) -> str:
    """Write the scores of a run and its confusion matrix as text.

    ``results`` are those of ``write_results``.

    >>> fused = {"confusion": [[1, 0], [1, 2]], "n": 4}
    >>> shared = {
    ...     name: {"speaker": {"count": 0}} for name in ("train", "valid")
    ... }
    >>> results = {"description": "session, fold 0", "note": ""}
    >>> results |= {"wa": 0.75, "ua": 0.8333, "macro_f1": 0.7333}
    >>> results |= {"labels": ["anger", "sadness"], "test": {"fused": fused}}
    >>> results |= {"test_speakers": 1, "leaks": shared}
    >>> results |= {"best_epoch": 3, "selection": "best validation UA"}
    >>> print(summarize_results(results))
    <BLANKLINE>
    session, fold 0
    WA 75.0%  UA 83.3%  macro-F1 73.3%  on 1 speaker that the model never heard
    4 clips, epoch 3 (best validation UA)
    <BLANKLINE>
    truth \\ predicted  anger  sadness  recall
    anger                  1        0  100.0 %
    sadness                1        2   66.7 %
    """
    fused, found = results["test"]["fused"], results.get("calibration")
    lines = ["", results["description"]]
    lines += [f"NOTE: {results['note']}"] if results["note"] else []
    lines.append(
        f"WA {results['wa']:.1%}  UA {results['ua']:.1%}  macro-F1 "
        f"{results['macro_f1']:.1%}  {describe_speakers(results)}"
    )
    epoch = f"epoch {results['best_epoch']} ({results['selection']})"
    lines += [f"{fused['n']} clips, {epoch}", ""]
    lines.append(format_confusion(fused["confusion"], results["labels"]))
    if found:
        lines += ["", describe_calibration(found)]
    return "\n".join(lines)


def commands_to_try(
    arguments: Sequence[str], script: str | Path, folder: Path, clip: str
) -> list[str]:
    """Commands that go on from a trained fold, to be pasted into a shell.

    Arguments
    ---------
    arguments
        Those of the training, as typed.
    script
        Path of train.py, which shows whether there is a checkout.
    folder
        Output folder of the run.
    clip
        Audio file to classify.

    Example
    -------
    >>> given = ["dual_level", "--corpus=emodb", "--fold=1"]
    >>> commands = commands_to_try(
    ...     given, "train.py", Path("run"), "my clip.wav"
    ... )
    >>> for command in commands:
    ...     print(command[command.index("dslstm") :])
    dslstm classify -m run/model 'my clip.wav'
    dslstm cross-validate dual_level --corpus=emodb --report=report
    dslstm ...serve -m run/model
    """
    program = "dslstm"
    if shutil.which(program) is None:
        program = f"{shlex.quote(sys.executable)} -m speechbrain_dslstm.cli"
    model = shlex.quote(str(folder / "model"))
    serve = f"{program} serve -m {model}"
    if importlib.util.find_spec("uvicorn") is None:
        root = Path(script).resolve().parents[2]
        checkout = (root / "setup.py").is_file()
        name = os.path.relpath(root) if checkout else "speechbrain-dslstm"
        serve = f"pip install {shlex.quote(f'{name}[serve]')} && {serve}"
    return [
        f"{program} classify -m {model} {shlex.quote(clip)}",
        f"{program} {_longer(arguments, folder)}",
        serve,
    ]


def _longer(arguments: Sequence[str], folder: Path) -> str:
    """All folds, or a report of the one where the options are not enough."""
    kept = [
        one
        for one in arguments
        if one.removeprefix("--").partition("=")[0] not in OF_A_FOLD
    ]
    # A value behind a blank, which the script of all folds does not read
    whole = [one for one in kept if not one.startswith("--")] == kept[:1]
    if not whole or "--protocol=all" in kept:
        return f"report {shlex.quote(str(folder))} --output=report"
    return f"cross-validate {shlex.join(kept)} --report=report"
