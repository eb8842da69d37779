"""An exported file answers as the classifier it was made from, or says why not."""

import pytest
import torch

from speechbrain_dslstm import DualLevelClassifier, EmotionClassifier
from speechbrain_dslstm.audio import AudioError
from speechbrain_dslstm.export import export_onnx, load_onnx
from speechbrain_dslstm.export.onnx_runtime import require
from speechbrain_dslstm.pretrained import make_label_encoder

onnx = pytest.importorskip("onnx")


@pytest.fixture(scope="module")
def made():
    model = DualLevelClassifier(2, p=0.0).eval()
    labels = make_label_encoder(["sad", "angry"])
    return EmotionClassifier.from_model(model, labels, 8000, temperature=2.0)


@pytest.fixture(scope="module")
def path(made, tmp_path_factory):
    return export_onnx(made, tmp_path_factory.mktemp("onnx") / "model.onnx")


def test_the_same_answers(made, path, speech_files):
    loaded = load_onnx(path, threads=1)
    assert loaded.labels == made.labels and loaded.hparams.sample_rate == 8000
    wavs = torch.randn(3, 9000) * 0.1
    for lengths in (None, torch.tensor([1.0, 0.5, 0.1]), [9000, 400, 1]):
        found = loaded.classify_batch(wavs, lengths)
        expected = made.classify_batch(wavs, lengths)
        torch.testing.assert_close(found[0], expected[0], atol=1e-4, rtol=0)
        assert found[3] == expected[3]
    found = loaded.classify_file(speech_files[0])
    expected = made.classify_file(speech_files[0])
    torch.testing.assert_close(found[0], expected[0], atol=1e-4, rtol=0)


def test_the_same_checks(path):
    loaded = load_onnx(path)
    with pytest.raises(AudioError, match="samples up to 1001"):
        loaded.classify_batch(torch.full((1, 9000), 1001.0))
    with pytest.raises(ValueError, match="expected waveforms"):
        loaded.mods.embedding_model(torch.zeros(9000))
    with pytest.raises(ValueError, match="supports no ONNXModel"):
        loaded.stream()


def test_files_of_another_kind(path, tmp_path):
    with pytest.raises(FileNotFoundError, match="no model file .*gone.onnx"):
        load_onnx(tmp_path / "gone.onnx")
    (tmp_path / "text.onnx").write_text("no model")
    with pytest.raises(ValueError, match="text.onnx is no ONNX model"):
        load_onnx(tmp_path / "text.onnx")
    model = onnx.load(path)
    del model.metadata_props[:]
    onnx.save(model, tmp_path / "other.onnx")
    with pytest.raises(ValueError, match="was not written by export_onnx"):
        load_onnx(tmp_path / "other.onnx")


def test_a_missing_library_is_named():
    require("onnx", "torch")
    with pytest.raises(ImportError, match=r"no_such_library is missing: pip"):
        require("torch", "no_such_library")
