"""Write and read the folder of a trained model.

The folder is self-contained. ``model.ckpt`` holds the weights as safetensors.
SpeechBrain's classes and ``EmotionClassifier.from_hparams`` read the
architecture from ``hyperparams.yaml``, the order of the classes from
``label_encoder.ckpt``; ``foreign_class`` also needs ``custom_interface.py``.
``load_safe`` reads ``model.json`` instead, which is data and no program. Both
the YAML and the JSON record the hashes of the files they use; older folders
without hashes still load.
"""

import hashlib
import pickle
from io import BytesIO, StringIO
from pathlib import Path

import torch
from hyperpyyaml import resolve_references
from ruamel.yaml import YAML
from safetensors import SafetensorError
from safetensors.torch import load
from speechbrain.dataio.encoder import CategoricalEncoder
from speechbrain.utils.logger import get_logger

from speechbrain_dslstm.models.calibration import TemperatureScaling
from speechbrain_dslstm.models.whisper_frames import WhisperFrames
from speechbrain_dslstm.pretrained.architecture import UnknownPart
from speechbrain_dslstm.pretrained.safe_format import (
    DESCRIPTION,
    OLDER_WEIGHTS,
    write_safe,
    write_weights,
)
from speechbrain_dslstm.pretrained.untrusted_files import (
    check_hash,
    check_shapes,
    shorten,
)
from speechbrain_dslstm.utils.files import replace_file, replacement

__all__ = [
    "PassThrough",
    "save_pretrained",
    "load_weights",
    "load_labels",
    "make_label_encoder",
]

logger = get_logger(__name__)

HYPERPARAMS = "hyperparams.yaml"
SEPARATOR = CategoricalEncoder.VALUE_SEPARATOR
# SpeechBrain's EncoderClassifier requires these names of modules. It passes no
# lengths to compute_features, so embedding_model computes the features.
FRAME = """\
classifier: !new:speechbrain_dslstm.models.TemperatureScaling
  temperature: !ref <temperature>
label_encoder: !new:speechbrain.dataio.encoder.CategoricalEncoder
audio_normalizer: !new:speechbrain.dataio.preprocess.AudioNormalizer
  sample_rate: !ref <sample_rate>
modules:
  compute_features: !new:torch.nn.Identity
  mean_var_norm: !new:speechbrain_dslstm.pretrained.PassThrough
  embedding_model: !ref <model>
  classifier: !ref <classifier>
pretrainer: !new:speechbrain.utils.parameter_transfer.Pretrainer
  loadables:
    model: !ref <model>
    label_encoder: !ref <label_encoder>
  custom_hooks:
    model: !name:speechbrain_dslstm.pretrained.load_weights
      sha256: "{model}"
    label_encoder: !name:speechbrain_dslstm.pretrained.load_labels
      sha256: "{label_encoder}"
"""
INTERFACE = """\
from speechbrain_dslstm import EmotionClassifier
CustomInterface = EmotionClassifier
"""


class PassThrough(torch.nn.Module):
    """Return the input unchanged; takes the place of a normalisation.

    Example
    -------
    >>> PassThrough()(torch.ones(1, 2), torch.ones(1))
    tensor([[1., 1.]])
    """

    def forward(
        self, x: torch.Tensor, lengths: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Return ``x``; the lengths are not used."""
        return x


def save_pretrained(
    folder: str | Path,
    hparams: str,
    model: torch.nn.Module,
    labels: list[str],
    temperature: float = 1.0,
    half: bool = False,
) -> None:
    """Write a model folder for ``EmotionClassifier.from_hparams`` and ``load_safe``.

    A model with a class that ``pretrained.architecture.TABLE`` does not list
    gets no ``model.json``, but a warning: ``load_safe`` cannot load it.

    Arguments
    ---------
    folder
        Created if it does not exist.
    hparams
        HyperPyYAML text that defines ``model`` and ``sample_rate``; other keys
        are not written to the folder.
    model
        The trained model.
    labels
        Names of the classes in the order of their indices.
    temperature
        A positive number that divides the log-posteriors, see
        ``evaluation.fit_temperature``.
    half
        Round the parameters to 16 bits, which halves the folder.

    Example
    -------
    >>> from speechbrain_dslstm import DualLevelClassifier
    >>> yaml = '''sample_rate: 16000
    ... model: !new:speechbrain_dslstm.DualLevelClassifier {n_classes: 1}'''
    >>> folder = getfixture("tmp_path")
    >>> model = DualLevelClassifier(n_classes=1)
    >>> save_pretrained(folder, yaml, model, ["anger"])
    >>> len(list(folder.iterdir()))
    5
    """
    temperature = TemperatureScaling(temperature).temperature
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    yaml = YAML()
    resolved = yaml.load(resolve_references(hparams))
    rate = resolved["sample_rate"]
    frame = {"sample_rate": rate, "temperature": temperature}
    encoders = [m for m in model.modules() if isinstance(m, WhisperFrames)]
    sizes = {str(encoder.source): encoder.encoder.sizes for encoder in encoders}
    _detach_encoders(resolved["model"], sizes)
    out = StringIO()
    yaml.dump({**frame, "model": resolved["model"]}, out)
    # Comments of the training YAML would end up in the wrong places
    lines = [line for line in out.getvalue().splitlines() if line.strip()]
    lines = [line for line in lines if not line.lstrip().startswith("#")]
    try:
        write_safe(folder, model, labels, rate, temperature, half)
    except UnknownPart as error:
        why = str(error).split(";")[0]
        logger.warning("%s: no %s for load_safe: %s", folder, DESCRIPTION, why)
        write_weights(folder, model, half)
        # The files of an earlier model would no longer fit
        for name in (DESCRIPTION, OLDER_WEIGHTS):
            (folder / name).unlink(missing_ok=True)
    with replacement(folder / "label_encoder.ckpt") as path:
        make_label_encoder(labels).save(str(path))
        _protect_separators(path)
    hashes = {
        name: hashlib.sha256((folder / f"{name}.ckpt").read_bytes()).hexdigest()
        for name in ("model", "label_encoder")
    }
    text = "\n".join(lines) + "\n" + FRAME.format(**hashes)
    replace_file(folder / HYPERPARAMS, text)
    replace_file(folder / "custom_interface.py", INTERFACE)


def _protect_separators(path: Path) -> None:
    """Escape what SpeechBrain's reader would take for the end of a class name.

    A line is the name as a Python literal, " => " and the index; a name that
    has " => " as well is cut there when read, unless it is escaped.
    """
    lines = []
    for line in path.read_text(encoding="utf-8").splitlines(keepends=True):
        name, separator, index = line.rpartition(SEPARATOR)
        escaped = SEPARATOR.replace("=", "\\x3d")
        lines.append(name.replace(SEPARATOR, escaped) + separator + index)
    path.write_text("".join(lines), encoding="utf-8")


def _detach_encoders(node: object, sizes: dict[str, dict[str, int]]) -> None:
    """Replace the source of each encoder in a YAML by the encoder's sizes.

    The weights are in the model folder, and the source is not on the machine
    that loads it.
    """
    if isinstance(node, list):
        for one in node:
            _detach_encoders(one, sizes)
    if not isinstance(node, dict):
        return
    tag = getattr(node, "tag", None)
    if tag is not None and str(tag.value).endswith(".WhisperFrames"):
        source = str(node.get("source"))
        # An alias of a node that was changed already has no source
        if source in sizes:
            node["sizes"], node["source"] = dict(sizes[source]), None
    for one in node.values():
        _detach_encoders(one, sizes)


def make_label_encoder(labels: list[str]) -> CategoricalEncoder:
    """Make SpeechBrain's encoder of the classes, in the order given.

    Arguments
    ---------
    labels
        Names of the classes in the order of their indices.

    Example
    -------
    >>> make_label_encoder(["sadness", "anger"]).ind2lab[0]
    'sadness'
    """
    encoder = CategoricalEncoder()
    encoder.update_from_iterable(labels, sequence_input=False)
    encoder.expect_len(len(labels))
    return encoder


def load_labels(
    encoder: CategoricalEncoder, path: str | Path, sha256: str | None = None
) -> None:
    """Load the classes into an encoder, and set the number SpeechBrain expects.

    A file with another hash raises ValueError.

    Arguments
    ---------
    encoder
        Receives the classes.
    path
        A file that the encoder's ``save`` wrote.
    sha256
        Hash of the file, as the model's YAML records it.

    Example
    -------
    >>> path = getfixture("tmp_path") / "labels.txt"
    >>> make_label_encoder(["sadness", "anger"]).save(str(path))
    >>> encoder = CategoricalEncoder()
    >>> load_labels(encoder, path)
    >>> encoder.decode_ndim(1)
    'anger'
    """
    check_hash(Path(path).read_bytes(), sha256, path, HYPERPARAMS)
    encoder.load(str(path))
    encoder.expect_len(len(encoder))


def load_weights(
    model: torch.nn.Module, path: str | Path, sha256: str | None = None
) -> None:
    """Load weights that must fit the model exactly, so that none stays random.

    Arguments
    ---------
    model
        Receives the weights.
    path
        A file of safetensors or of ``torch.save``; nothing in it is executed.
    sha256
        Hash of the file, as the model's YAML records it.

    Raises
    ------
    ValueError
        The file has another hash, holds no weights, or they do not fit; the
        message names missing, unexpected, wrongly shaped and non-finite ones.

    Example
    -------
    >>> path = getfixture("tmp_path") / "model.ckpt"
    >>> torch.save({"scale": torch.ones(1)}, path)
    >>> load_weights(torch.nn.Linear(1, 1, bias=False), path)
    Traceback (most recent call last):
    ValueError: ...model.ckpt does not fit the model: missing weight; ...
    """
    state = read_weights(path, sha256)
    check_shapes(model.state_dict(), state, path)
    model.load_state_dict(state)


def read_weights(
    path: str | Path, sha256: str | None = None
) -> dict[str, torch.Tensor]:
    """Read the tensors of a weights file; arguments as for ``load_weights``."""
    data = Path(path).read_bytes()
    check_hash(data, sha256, path, HYPERPARAMS)
    unreadable = SafetensorError, KeyError, pickle.UnpicklingError, RuntimeError
    try:
        if data[:2] == b"PK":
            return torch.load(BytesIO(data), "cpu", weights_only=True)
        return load(data)
    except unreadable as error:
        message = f"cannot read weights from {path}: {shorten(error)}"
        raise ValueError(message) from error
