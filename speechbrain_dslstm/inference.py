"""From a waveform to an emotion: pretrained models, saved and loaded.

A model folder is self-contained: ``hyperparams.yaml`` with the architecture,
``model.ckpt`` with the weights, ``label_encoder.ckpt`` with the classes in
their order. It loads from a local folder or a hub alike. A model YAML is a
program: load it only from a source you trust.
"""

import os
import re
from io import StringIO
from pathlib import Path

import torch
from hyperpyyaml import resolve_references
from ruamel.yaml import YAML
from speechbrain.dataio.encoder import CategoricalEncoder
from speechbrain.inference.interfaces import Pretrained

from speechbrain_dslstm.audio import load_audio

__all__ = ["EmotionClassifier", "save_pretrained", "load_weights"]

HYPERPARAMS = "hyperparams.yaml"
FRAME = """\
label_encoder: !new:speechbrain.dataio.encoder.CategoricalEncoder
modules:
  model: !ref <model>
pretrainer: !new:speechbrain.utils.parameter_transfer.Pretrainer
  loadables:
    model: !ref <model>
    label_encoder: !ref <label_encoder>
  custom_hooks:
    model: !name:speechbrain_dslstm.inference.load_weights
    label_encoder: !name:speechbrain.dataio.encoder.CategoricalEncoder.load
"""


class EmotionClassifier(Pretrained):
    """Classifies the emotion of utterances with a trained model.

    Load one with ``EmotionClassifier.from_hparams(source)``.

    Arguments
    ---------
    modules : dict of str to torch.nn.Module
        Holds "model": waveforms and lengths in, log-posteriors out.
    hparams : dict
        Holds "label_encoder" and "sample_rate".
    run_opts : dict, optional
        Run options of SpeechBrain, such as {"device": "cuda"}.
    freeze_params : bool
        Inference only: no gradients, evaluation mode.

    Example
    -------
    >>> folder = getfixture("tmp_path")
    >>> yaml = '''
    ... sample_rate: 16000
    ... model: !new:speechbrain_dslstm.DualLevelClassifier
    ...     n_classes: 2
    ... '''
    >>> from speechbrain_dslstm import DualLevelClassifier
    >>> model = DualLevelClassifier(n_classes=2)
    >>> save_pretrained(folder, yaml, model, ["anger", "sadness"])
    >>> classifier = EmotionClassifier.from_hparams(folder)
    >>> out_prob, score, index, text_lab = classifier.classify_batch(
    ...     torch.randn(3, 16000)
    ... )
    >>> out_prob.shape, score.shape, len(text_lab)
    (torch.Size([3, 2]), torch.Size([3]), 3)
    """

    MODULES_NEEDED = ["model"]
    HPARAMS_NEEDED = ["label_encoder", "sample_rate"]

    def __init__(
        self, modules=None, hparams=None, run_opts=None, freeze_params=True
    ):
        for name in self.MODULES_NEEDED:
            if name not in (modules or {}):
                raise ValueError(f"the model's YAML has no modules[{name}]")
        if run_opts and isinstance(run_opts.get("device"), torch.device):
            run_opts = {**run_opts, "device": str(run_opts["device"])}
        super().__init__(modules, hparams, run_opts, freeze_params)
        encoder = self.hparams.label_encoder
        encoder.expect_len(len(encoder))

    @classmethod
    def from_hparams(
        cls, source, hparams_file=HYPERPARAMS, savedir=None, **kwargs
    ):
        """Load a pretrained model.

        Arguments
        ---------
        source : str or pathlib.Path
            A local model folder or a hub id such as "user/model".
        hparams_file : str
            Name of the YAML in it.
        savedir : str or pathlib.Path, optional
            Where files of a hub are kept; not used for a local folder.
        **kwargs : dict
            Passed to SpeechBrain's ``Pretrained.from_hparams``, such as
            ``run_opts`` and ``overrides``.

        Returns
        -------
        EmotionClassifier
            Ready for inference.

        Raises
        ------
        FileNotFoundError
            ``source`` looks like a local path and is none.
        ValueError
            The weights do not fit the architecture.
        """
        local = Path(source).expanduser()
        if str(source) and local.is_dir():
            if not (local / hparams_file).is_file():
                raise FileNotFoundError(f"no {hparams_file} in {local}")
            # What lies in a savedir is taken as it is, of any model
            source, savedir = str(local.resolve()), None
        elif _looks_local(source):
            raise FileNotFoundError(f"no model folder {source}")
        if savedir is not None:
            savedir = str(savedir)
        return super().from_hparams(
            str(source), hparams_file, savedir=savedir, **kwargs
        )

    def classify_batch(self, wavs, wav_lens=None):
        """Classify a padded batch of waveforms.

        Arguments
        ---------
        wavs : torch.Tensor, [batch, samples] or [samples]
            Waveforms in [-1, 1] at the model's rate.
        wav_lens : torch.Tensor, [batch], optional
            Relative lengths (floats) or sample counts (integers).

        Returns
        -------
        out_prob : torch.Tensor, [batch, n_classes]
            Log-posteriors: their exponentials sum to 1.
        score : torch.Tensor, [batch]
            Log-posterior of the best class.
        index : torch.Tensor, int64, [batch]
            The best class.
        text_lab : list of str, [batch]
            Its name.
        """
        if wavs.dim() == 1:
            wavs = wavs.unsqueeze(0)
        if wav_lens is not None:
            wav_lens = torch.as_tensor(wav_lens, device=self.device)
        wavs = wavs.to(self.device)
        if wavs.is_floating_point():
            wavs = wavs.float()
        with self.inference_ctx, torch.no_grad():
            out_prob = self.mods.model(wavs, wav_lens).float()
        score, index = out_prob.max(dim=-1)
        text_lab = self.hparams.label_encoder.decode_torch(index)
        return out_prob, score, index, text_lab

    def classify_file(self, path):
        """Classify an audio file of any rate and channel count.

        Arguments
        ---------
        path : str or pathlib.Path
            A local audio file.

        Returns
        -------
        out_prob : torch.Tensor, [1, n_classes]
            Log-posteriors: their exponentials sum to 1.
        score : torch.Tensor, [1]
            Log-posterior of the best class.
        index : torch.Tensor, int64, [1]
            The best class.
        text_lab : list of str, [1]
            Its name.

        Raises
        ------
        ValueError
            The file cannot be read or holds no audio; the message names it.
        """
        return self.classify_batch(load_audio(path, self.hparams.sample_rate))

    def forward(self, wavs, wav_lens=None):
        """The same as ``classify_batch``.

        Arguments
        ---------
        wavs : torch.Tensor, [batch, samples]
            Waveforms in [-1, 1] at the model's rate.
        wav_lens : torch.Tensor, [batch], optional
            Relative lengths (floats) or sample counts (integers).

        Returns
        -------
        tuple
            As ``classify_batch``.
        """
        return self.classify_batch(wavs, wav_lens)


def save_pretrained(folder, hparams, model, labels):
    """Write a model folder that ``EmotionClassifier.from_hparams`` loads.

    Arguments
    ---------
    folder : str or pathlib.Path
        Made if it does not exist.
    hparams : str
        HyperPyYAML text that defines ``model`` and ``sample_rate``, or
        ``features[sample_rate]``; everything else in it is left out.
    model : torch.nn.Module
        The trained model.
    labels : list of str
        Names of the classes in the order of their indices.

    Example
    -------
    >>> folder = getfixture("tmp_path")
    >>> yaml = "sample_rate: 8000\\nmodel: !new:torch.nn.Linear [2, 1]"
    >>> save_pretrained(folder, yaml, torch.nn.Linear(2, 1), ["anger"])
    >>> sorted(path.name for path in folder.iterdir())
    ['hyperparams.yaml', 'label_encoder.ckpt', 'model.ckpt']
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    yaml = YAML()
    resolved = yaml.load(resolve_references(hparams))
    rate = resolved.get("sample_rate")
    frame = {"sample_rate": rate or resolved["features"]["sample_rate"]}
    out = StringIO()
    yaml.dump({**frame, "model": resolved["model"]}, out)
    # The comments of the training YAML lose their place in here
    lines = [
        line
        for line in out.getvalue().splitlines()
        if line.strip() and not line.lstrip().startswith("#")
    ]
    text = "\n".join(lines) + "\n" + FRAME
    _write(folder / HYPERPARAMS, lambda p: p.write_text(text))
    _write(folder / "model.ckpt", lambda p: torch.save(model.state_dict(), p))
    encoder = CategoricalEncoder()
    encoder.update_from_iterable(labels, sequence_input=False)
    _write(folder / "label_encoder.ckpt", lambda p: encoder.save(str(p)))


def load_weights(model, path):
    """Load weights that fit a model exactly; nothing is left at random.

    Arguments
    ---------
    model : torch.nn.Module
        Gets the weights.
    path : str or pathlib.Path
        A file written by ``torch.save``; nothing in it is executed.

    Raises
    ------
    ValueError
        Missing, unexpected or mis-shaped keys; the message names them.

    Example
    -------
    >>> path = getfixture("tmp_path") / "model.ckpt"
    >>> torch.save({"scale": torch.ones(1)}, path)
    >>> load_weights(torch.nn.Linear(1, 1, bias=False), path)
    Traceback (most recent call last):
    ValueError: ...model.ckpt does not fit the model: missing weight; ...
    """
    state = torch.load(path, map_location="cpu", weights_only=True)
    own = model.state_dict()
    faults = {
        "missing": sorted(own.keys() - state.keys()),
        "unexpected": sorted(state.keys() - own.keys()),
        "of another shape": sorted(
            f"{key} {list(state[key].shape)} instead of {list(own[key].shape)}"
            for key in own.keys() & state.keys()
            if own[key].shape != state[key].shape
        ),
    }
    found = [
        f"{kind} {', '.join(keys)}" for kind, keys in faults.items() if keys
    ]
    if found:
        raise ValueError(f"{path} does not fit the model: {'; '.join(found)}")
    model.load_state_dict(state)


def _write(path, write):
    """Write aside and rename, so that no half-written file is ever loaded."""
    aside = path.with_name(path.name + ".part")
    write(aside)
    os.replace(aside, path)


def _looks_local(source):
    """Whether a source that is no folder has not the form of a hub id."""
    hub_id = r"\w[\w.-]*/\w[\w.-]*"
    return isinstance(source, Path) or not re.fullmatch(
        hub_id, str(source), re.ASCII
    )
