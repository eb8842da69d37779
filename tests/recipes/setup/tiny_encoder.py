"""Write a tiny self-supervised encoder with random weights, for tests.

> python tiny_encoder.py FOLDER [wav2vec2 | hubert | wavlm] [layer | group]
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


def write_encoder(folder, kind="wav2vec2", norm="layer"):
    """Write configuration, weights and feature extractor.

    Norm "layer" is that of the large models, "group" that of the base ones.
    """
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
    transformers.Wav2Vec2FeatureExtractor(
        do_normalize=large, return_attention_mask=large
    ).save_pretrained(folder)


if __name__ == "__main__":
    write_encoder(*sys.argv[1:])
