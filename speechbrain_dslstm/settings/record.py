"""What a folder was trained with: a rerun applies its settings, or is refused.

``save/settings.json`` holds all settings of a run, resolved, and is written
before the training. A rerun or resume is compared with it key by key. Keys that
change no result (``hparams.WITHOUT_EFFECT``) apply at once. More epochs are
planned anew: the schedule and the choice of the epoch are those of the new
number. Any other difference is refused, before anything is written.
"""

import json
import os
from collections.abc import Mapping
from io import StringIO
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from speechbrain.utils.logger import get_logger

from speechbrain_dslstm.hparams import (
    WITHOUT_EFFECT,
    flat_yaml,
    plain_settings,
    read_hparams,
    run_folder,
)
from speechbrain_dslstm.settings.provenance import find_provenance
from speechbrain_dslstm.utils.files import replace_file

__all__ = ["RunRecord"]

logger = get_logger(__name__)

EPOCHS = "number_of_epochs"
# Not compared: they repeat others, or concern one call alone
IGNORED = (
    *("recipe", "modules", "output_folder", "noprogressbar", "test_only"),
    *("tqdm_colored_bar", "log_config"),
)
SHOWN = 60  # characters of a value in a message


class RunRecord:
    """The settings of a run beside those that its folder was trained with.

    Arguments
    ---------
    hparams_file
        The system's YAML.
    overrides
        Those of ``parse_arguments``.
    folder
        Output folder; None for that of the settings.
    settings
        Those of ``hparams.plain_settings``, if they are known.

    Example
    -------
    >>> yaml = getfixture("tmp_path") / "system.yaml"
    >>> _ = yaml.write_text("output_folder: null\\nlr: 0.1\\n")
    >>> run = RunRecord(yaml, folder=yaml.parent / "run")
    >>> run.write()
    >>> _ = (yaml.parent / "run" / "results.json").write_text("{}")
    >>> other = RunRecord(yaml, "lr: 1", folder=yaml.parent / "run")
    >>> other.refused
    {'lr': (0.1, 1)}
    """

    def __init__(
        self,
        hparams_file: str | Path,
        overrides: str = "",
        folder: str | Path | None = None,
        settings: dict[str, Any] | None = None,
    ) -> None:
        self.source = Path(hparams_file)
        self.overrides = overrides
        if folder is None:
            folder = run_folder(read_hparams(hparams_file, overrides))
        self.folder = Path(folder)
        self.path = self.folder / "save" / "settings.json"
        self.results = self.folder / "results.json"
        self.settings = settings or plain_settings(hparams_file, overrides)
        self.aside = False  # whether results of fewer epochs were renamed
        self.before = self._read()
        self.applied, self.refused = self._compare()

    @property
    def finished(self) -> bool:
        """Whether the folder holds results of a training of so many epochs."""
        fewer = EPOCHS in self.applied and not self.aside
        return self.results.exists() and not fewer

    @property
    def trained(self) -> bool:
        """Whether the folder holds results or checkpoints."""
        save = self.folder / "save"
        return self.results.exists() or any(save.glob("CKPT*"))

    def check(self) -> None:
        """Raise a ValueError that names each key which cannot be changed."""
        if self.refused:
            names = ", ".join(
                f"{name} ({_show(before)}, now {_show(now)})"
                for name, (before, now) in self.refused.items()
            )
            raise ValueError(
                f"{self.folder} holds a run with another {names}: give "
                "another --output_folder, or remove that folder"
            )

    def write(self) -> None:
        """Write hyperparams.yaml and the record, before the training starts."""
        provenance = find_provenance()
        changes = list(self.before.get("changes", []))
        for name, (before, now) in self.applied.items():
            changes.append({"key": name, "before": before, "now": now})
        older = self.before.get("code")
        if older is not None and older != provenance:
            logger.info(f"the run goes on with other code: {older} before")
            changes.append({"key": "code", "before": older, "now": provenance})
        if EPOCHS in self.applied:
            before, now = self.applied[EPOCHS]
            logger.info(f"planned anew: {now} epochs in place of {before}")
            self.set_aside()
        text = flat_yaml(self.source, self.overrides)
        head = f"# Written by speechbrain-dslstm {provenance['version']} from "
        head += f"{self.source}.\n# It needs no other file, runs again, and "
        head += "takes the same options.\n# yamllint disable\n"
        replace_file(self.folder / "hyperparams.yaml", head + text)
        record = {"code": provenance, "settings": self.settings}
        record["changes"] = changes
        replace_file(self.path, json.dumps(record, indent=1) + "\n")

    def set_aside(self) -> None:
        """Keep the results of fewer epochs under another name."""
        if EPOCHS in self.applied and self.results.exists() and not self.aside:
            name = f"results_{self.applied[EPOCHS][0]}_epochs.json"
            os.replace(self.results, self.folder / name)
        self.aside = True

    def _read(self) -> dict[str, Any]:
        """Read the record of a trained folder; empty where there is none."""
        if not self.trained:
            return {}
        try:
            record = json.loads(self.path.read_text(encoding="utf-8"))
            if not isinstance(record["settings"], dict):
                raise TypeError("settings is no object")
        except FileNotFoundError:
            logger.warning(
                f"{self.folder} has no record of its settings "
                f"({self.path.name}): they are not compared"
            )
            return {}
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"{self.path} is damaged ({error}): remove {self.folder} to "
                "train again"
            ) from error
        return record

    def _compare(self) -> tuple[dict, dict]:
        """Differences (before, now) that apply, and those that are refused."""
        before = self.before.get("settings")
        if before is None:
            return {}, {}
        found = _differences(before, self.settings)
        applied = {
            name: pair
            for name, pair in found.items()
            if name in WITHOUT_EFFECT or name == EPOCHS and pair[0] < pair[1]
        }
        if applied and found.keys() != applied.keys():
            # Objects may follow from the keys that apply
            given = YAML().load(self.overrides) or {}
            given |= {k: before.get(k) for k in applied if k in self.settings}
            out = StringIO()
            YAML().dump(given, out)
            same = plain_settings(self.source, out.getvalue())
            found = _differences(before, same)
        refused = {k: v for k, v in found.items() if k not in applied}
        unknown = {k: v for k, v in refused.items() if k not in before}
        if unknown and self.before.get("code") != find_provenance():
            # A key that this version has added
            applied |= unknown
            refused = {k: v for k, v in refused.items() if k not in unknown}
        plain = {
            name: pair
            for name, pair in refused.items()
            if not any(isinstance(one, Mapping) for one in pair)
        }
        # An object that follows from a number would say the same again
        return applied, plain or refused


def _differences(before: Mapping, now: Mapping) -> dict[str, tuple]:
    """Values of the keys that differ; a missing key is null."""
    return {
        name: (before.get(name), now.get(name))
        for name in {**now, **before}
        if before.get(name) != now.get(name) and name not in IGNORED
    }


def read_record(folder: str | Path) -> dict[str, Any]:
    """Read what a run has recorded; empty for runs of older versions."""
    path = Path(folder, "save", "settings.json")
    if not path.exists():
        return {}
    return json.loads(path.read_text(encoding="utf-8"))


def _show(value: Any) -> str:
    """Shorten a value for a message."""
    if isinstance(value, Mapping) and value.keys() == {"tag", "value"}:
        value = f"{value['tag']} {value['value']}"
    text = "null" if value is None else str(value)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."
