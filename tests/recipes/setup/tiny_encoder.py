"""Write a tiny self-supervised encoder with random weights, for tests.

> python tiny_encoder.py FOLDER [wav2vec2 | hubert | wavlm | whisper] [layer | group]
"""

import sys

import torch
import transformers

CLASSES = {
    "wav2vec2": (transformers.Wav2Vec2Config, transformers.Wav2Vec2Model),
    "hubert": (transformers.HubertConfig, transformers.HubertModel),
    "wavlm": (transformers.WavLMConfig, transformers.WavLMModel),
}
SIZES = {
    "hidden_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "conv_dim": [8] * 7,
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 2,
}


def write_whisper(folder, num_layers=3, positions=1500):
    """Write a tiny Whisper: configuration, weights and feature extractor.

    It reads windows of ``positions`` frames of 20 ms.
    """
    config = transformers.WhisperConfig(
        d_model=16,
        encoder_layers=num_layers,
        encoder_attention_heads=2,
        encoder_ffn_dim=32,
        decoder_layers=1,
        decoder_attention_heads=2,
        decoder_ffn_dim=32,
        vocab_size=60,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        decoder_start_token_id=3,
        max_source_positions=positions,
        begin_suppress_tokens=None,
    )
    torch.manual_seed(0)
    model = transformers.WhisperModel(config)
    with torch.no_grad():
        for name, value in model.named_parameters():
            if "positions" not in name:
                # Weights as large as those of a trained model
                value.normal_(std=0.2)
    model.save_pretrained(folder)
    transformers.WhisperFeatureExtractor().save_pretrained(folder)


def write_encoder(folder, kind="wav2vec2", norm="layer"):
    """Write configuration, weights and feature extractor.

    Norm "layer" is that of the large models, "group" that of the base ones.
    """
    if kind == "whisper":
        return write_whisper(folder)
    large = norm == "layer"
    config_class, model_class = CLASSES[kind]
    config = config_class(
        **SIZES,
        feat_extract_norm=norm,
        do_stable_layer_norm=large,
        conv_bias=large,
    )
    torch.manual_seed(0)
    model_class(config).save_pretrained(folder)
    extractor = transformers.Wav2Vec2FeatureExtractor(
        do_normalize=large, return_attention_mask=large
    )
    return extractor.save_pretrained(folder)


if __name__ == "__main__":
    write_encoder(*sys.argv[1:])
