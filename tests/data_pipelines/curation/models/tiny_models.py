"""Models of every kind that curation loads, small enough to be made in a test."""

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

SIDE = 32
"""Pixels a side that the models see."""
CHINESE_TOKENS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"一个红色的圆形蓝方"]
TRANSLATION = "红色的圆"
"""Answer of the tiny translation model to every text."""

_WIDTH = 16
_TINY = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}
_PICTURES = {
    "size": {"height": SIDE, "width": SIDE},
    "do_center_crop": False,
    "resample": 3,
    "image_mean": [0.5, 0.4, 0.3],
    "image_std": [0.2, 0.25, 0.5],
}


def write_chinese_clip(folder: Path) -> Path:
    """Write a ChineseCLIP model with random weights."""
    import transformers

    config = transformers.ChineseCLIPConfig(
        text_config={"vocab_size": 40, "max_position_embeddings": 64, **_TINY},
        vision_config={"image_size": SIDE, "patch_size": 8, **_TINY},
        projection_dim=16,
    )
    _write(transformers.ChineseCLIPModel, config, folder)
    _write_json(folder / "tokenizer_config.json", {"do_lower_case": True})
    (folder / "vocab.txt").write_text("\n".join(CHINESE_TOKENS) + "\n", encoding="utf-8")
    return folder


def write_clip(folder: Path) -> Path:
    """Write a CLIP model with random weights, whose tokens are a, b and the ends of words."""
    import transformers

    tokens = ["a", "b", "a</w>", "b</w>", "ab</w>", "<|startoftext|>", "<|endoftext|>"]
    config = transformers.CLIPConfig(
        text_config={
            "vocab_size": len(tokens), "max_position_embeddings": 16, "eos_token_id": 6,
            "bos_token_id": 5, "pad_token_id": 6, **_TINY,
        },
        vision_config={"image_size": SIDE, "patch_size": 8, **_TINY},
        projection_dim=16,
    )  # fmt: skip
    _write(transformers.CLIPModel, config, folder)
    _write_json(folder / "vocab.json", {token: number for number, token in enumerate(tokens)})
    (folder / "merges.txt").write_text("#version: 0.2\na b</w>\n", encoding="utf-8")
    return folder


def write_classifier(folder: Path, labels: Sequence[str]) -> Path:
    """Write an image classifier with random weights."""
    import transformers

    config = transformers.ViTConfig(
        image_size=SIDE, patch_size=8, id2label=dict(enumerate(labels)), **_TINY
    )
    _write(transformers.ViTForImageClassification, config, folder)
    return folder


def write_translation_model(folder: Path, *, model_adds_end: bool = False) -> Path:
    """Write a ctranslate2 model that answers TRANSLATION to everything.

    Every layer adds zero, so that the decoder's state is the embedding of the last token; the
    projection maps the embedding of each token to the next one of the answer.

    Args:
        folder: new folder.
        model_adds_end: whether the model itself ends its input, as those from Marian's files do.
    """
    import ctranslate2

    target = ["<unk>", "<s>", "</s>", "\u2581", *TRANSLATION]
    source = ["<unk>", "<s>", "</s>", ">>cmn_Hans<<", "\u2581", *"abcdehilrstu"]
    spec = ctranslate2.specs.TransformerSpec.from_config(num_layers=1, num_heads=2)
    _fill(spec, num_source=len(source), num_target=len(target))
    spec.decoder.embeddings.weight[:] = 20 * np.eye(len(target), _WIDTH, dtype=np.float32)
    for last, following in ((1, 3), (3, 4), (4, 5), (5, 6), (6, 7), (7, 2)):
        spec.decoder.projection.weight[following, last] = 1.0
    spec.config.add_source_eos = model_adds_end
    spec.register_source_vocabulary(source)
    spec.register_target_vocabulary(target)
    spec.validate()
    spec.optimize()
    folder.mkdir(parents=True)
    spec.save(str(folder))
    _write_pieces(folder / "source.spm", "a red circle\nthe blue tile\nred tiles", 15)
    _write_pieces(folder / "target.spm", f"{TRANSLATION}\n{TRANSLATION[::-1]}", 8)
    return folder


def _fill(spec: Any, *, num_source: int, num_target: int) -> None:
    """Give every weight zeros, and every layer norm ones."""
    from ctranslate2.specs.model_spec import index_spec

    shapes = {
        "encoder/embeddings_0/weight": (num_source, _WIDTH),
        "decoder/embeddings/weight": (num_target, _WIDTH),
        "decoder/projection/weight": (num_target, _WIDTH),
        "self_attention/linear_0/weight": (3 * _WIDTH, _WIDTH),
        "self_attention/linear_1/weight": (_WIDTH, _WIDTH),
        "attention/linear_0/weight": (_WIDTH, _WIDTH),
        "attention/linear_1/weight": (2 * _WIDTH, _WIDTH),
        "attention/linear_2/weight": (_WIDTH, _WIDTH),
        "ffn/linear_0/weight": (2 * _WIDTH, _WIDTH),
        "ffn/linear_1/weight": (_WIDTH, 2 * _WIDTH),
    }
    for name, value in spec.variables().items():
        if value is None:
            scope, _, leaf = name.rpartition("/")
            shape = next((shapes[end] for end in shapes if name.endswith(end)), (_WIDTH,))
            weight = np.full(shape, leaf == "gamma", np.float32)
            setattr(index_spec(spec, scope), leaf, weight)


def _write(model_class: Any, config: Any, folder: Path) -> None:
    import torch

    torch.manual_seed(0)
    model_class(config).save_pretrained(folder)
    _write_json(folder / "preprocessor_config.json", _PICTURES)


def _write_pieces(path: Path, text: str, size: int) -> None:
    import sentencepiece

    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(text.split("\n")), model_writer=model, vocab_size=size,
        model_type="char", bos_id=-1, minloglevel=2,
    )  # fmt: skip
    path.write_bytes(model.getvalue())


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value), encoding="utf-8")
