"""Model folders: written here, read by ``inference`` and ``safe_loader``.

A folder is self-contained and holds the same model twice. For SpeechBrain's
habits: ``hyperparams.yaml`` with the architecture, ``model.ckpt`` with the
weights, ``label_encoder.ckpt`` with the classes in their order, and
``custom_interface.py`` for ``foreign_class``. For ``load_safe``, which runs
nothing: ``model.json`` and ``model.safetensors``. Both YAML and JSON hold the
hashes of the files beside them; a folder written before they did still loads.
"""

import hashlib
import pickle
from io import BytesIO, StringIO
from pathlib import Path

import torch
from hyperpyyaml import resolve_references
from ruamel.yaml import YAML
from safetensors import SafetensorError
from safetensors.torch import load, save
from speechbrain.dataio.encoder import CategoricalEncoder
from speechbrain.utils.logger import get_logger

from speechbrain_dslstm.models.calibration import TemperatureScaling
from speechbrain_dslstm.pretrained.architecture import UnknownPart
from speechbrain_dslstm.pretrained.safe_format import (
    load_state,
    state_to_save,
    write_safe,
)
from speechbrain_dslstm.pretrained.untrusted_files import check_hash, shorten
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
# The names of modules that SpeechBrain's EncoderClassifier asks for. It hands
# lengths to the third of them first, so the features must be computed there.
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
    """Hand a batch on; lengths are taken and not used.

    Example
    -------
    >>> PassThrough()(torch.ones(1, 2), torch.ones(1))
    tensor([[1., 1.]])
    """

    def forward(self, x, lengths=None):
        """Return ``x``.

        Arguments
        ---------
        x : torch.Tensor
            Anything.
        lengths : torch.Tensor, optional
            Not used.

        Returns
        -------
        torch.Tensor
            ``x`` itself.
        """
        return x


def save_pretrained(
    folder, hparams, model, labels, temperature=1.0, half=False
):
    """Write a model folder that ``EmotionClassifier.from_hparams`` loads.

    What ``load_safe`` reads is left out, with a warning, where a class of the
    model is not in the table of ``speechbrain_dslstm.pretrained.architecture``.

    Arguments
    ---------
    folder : str or pathlib.Path
        Made if it does not exist.
    hparams : str
        HyperPyYAML text that defines ``model`` and ``sample_rate``;
        everything else in it is left out.
    model : torch.nn.Module
        The trained model.
    labels : list of str
        Names of the classes in the order of their indices.
    temperature : float
        Divides the log-posteriors, see ``calibration.fit_temperature``.
    half : bool
        Round the parameters to 16 bits, which halves the folder.

    Raises
    ------
    ValueError
        A temperature that is not a positive number.

    Example
    -------
    >>> from speechbrain_dslstm import DualLevelClassifier
    >>> folder = getfixture("tmp_path")
    >>> yaml = '''
    ... sample_rate: 16000
    ... model: !new:speechbrain_dslstm.DualLevelClassifier
    ...   n_classes: 1
    ...   p: 0.0
    ... '''
    >>> model = DualLevelClassifier(n_classes=1, p=0.0)
    >>> save_pretrained(folder, yaml, model, ["anger"])
    >>> len(list(folder.iterdir()))
    6
    """
    temperature = TemperatureScaling(temperature).temperature
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    yaml = YAML()
    resolved = yaml.load(resolve_references(hparams))
    rate = resolved["sample_rate"]
    frame = {"sample_rate": rate, "temperature": temperature}
    out = StringIO()
    yaml.dump({**frame, "model": resolved["model"]}, out)
    # The comments of the training YAML lose their place in here
    lines = [
        line
        for line in out.getvalue().splitlines()
        if line.strip() and not line.lstrip().startswith("#")
    ]
    try:
        write_safe(folder, model, labels, rate, temperature, half)
    except UnknownPart as error:
        logger.warning(
            "%s: no files for load_safe, %s", folder, str(error).split(";")[0]
        )
    # The host looks for this name; what is in it is no pickle
    state = save(state_to_save(model, half))
    replace_file(folder / "model.ckpt", state)
    encoder = make_label_encoder(labels)
    with replacement(folder / "label_encoder.ckpt") as temporary:
        encoder.save(str(temporary))
    hashes = {
        name: hashlib.sha256((folder / f"{name}.ckpt").read_bytes()).hexdigest()
        for name in ("model", "label_encoder")
    }
    text = "\n".join(lines) + "\n" + FRAME.format(**hashes)
    replace_file(folder / HYPERPARAMS, text)
    interface = folder / "custom_interface.py"
    replace_file(interface, INTERFACE)


def make_label_encoder(labels):
    """Fix the order of the classes.

    Arguments
    ---------
    labels : list of str
        Names of the classes in the order of their indices.

    Returns
    -------
    speechbrain.dataio.encoder.CategoricalEncoder
        Decodes indices into names.

    Example
    -------
    >>> make_label_encoder(["sadness", "anger"]).ind2lab[0]
    'sadness'
    """
    encoder = CategoricalEncoder()
    encoder.update_from_iterable(labels, sequence_input=False)
    encoder.expect_len(len(labels))
    return encoder


def load_labels(encoder, path, sha256=None):
    """Load the classes and promise their number, which the host asks for.

    Arguments
    ---------
    encoder : speechbrain.dataio.encoder.CategoricalEncoder
        Gets the classes.
    path : str or pathlib.Path
        A file written by its ``save``.
    sha256 : str, optional
        The hash that the model's YAML was written with.

    Raises
    ------
    ValueError
        The file has another hash.

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


def load_weights(model, path, sha256=None):
    """Load weights that fit a model exactly; nothing is left at random.

    Arguments
    ---------
    model : torch.nn.Module
        Gets the weights.
    path : str or pathlib.Path
        A file of safetensors, or one written by ``torch.save``; nothing in
        it is executed.
    sha256 : str, optional
        The hash that the model's YAML was written with.

    Raises
    ------
    ValueError
        The file has another hash or holds no weights, or they do not fit:
        missing, unexpected, mis-shaped or non-finite; the message names them.

    Example
    -------
    >>> path = getfixture("tmp_path") / "model.ckpt"
    >>> torch.save({"scale": torch.ones(1)}, path)
    >>> load_weights(torch.nn.Linear(1, 1, bias=False), path)
    Traceback (most recent call last):
    ValueError: ...model.ckpt does not fit the model: missing weight; ...
    """
    data = Path(path).read_bytes()
    check_hash(data, sha256, path, HYPERPARAMS)
    try:
        if data[:2] == b"PK":
            state = torch.load(
                BytesIO(data), map_location="cpu", weights_only=True
            )
        else:
            state = load(data)
    except (
        SafetensorError,
        KeyError,
        pickle.UnpicklingError,
        RuntimeError,
    ) as error:
        raise ValueError(
            f"cannot read weights from {path}: {shorten(error)}"
        ) from error
    load_state(model, state, path)
