"""Models of curation in their real shapes, with random weights: no figure needs trained ones."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np

LETTERS = "abcdefghijklmnop"
_VOCABULARY = 32_000
_WIDTH = 512
_PICTURES = {
    "size": {"height": 224, "width": 224},
    "do_center_crop": False,
    "resample": 3,
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
}


def write_chinese_clip(folder: Path) -> Path:
    """Write ChineseCLIP with ViT-B/16 and RoBERTa-base, 188 million parameters."""
    import transformers

    config = transformers.ChineseCLIPConfig(
        text_config={"vocab_size": 21_128},
        vision_config={"image_size": 224, "patch_size": 16},
        projection_dim=512,
    )
    _write(transformers.ChineseCLIPModel, config, folder)
    characters = [chr(0x4E00 + number) for number in range(20_000)]
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *characters]
    (folder / "vocab.txt").write_text("\n".join(tokens), encoding="utf-8")
    return folder


def write_classifier(folder: Path) -> Path:
    """Write an image classifier with ViT-B/16, 86 million parameters."""
    import transformers

    config = transformers.ViTConfig(id2label={0: "normal", 1: "nsfw"})
    _write(transformers.ViTForImageClassification, config, folder)
    return folder


def write_translation_model(folder: Path, *, quantization: str | None) -> Path:
    """Write a base Transformer of 6 + 6 layers and width 512, with a vocabulary of 32,000."""
    import ctranslate2
    from ctranslate2.specs.model_spec import index_spec

    spec = ctranslate2.specs.TransformerSpec.from_config(num_layers=6, num_heads=8)
    random = np.random.default_rng(0)
    for name, value in spec.variables().items():
        if value is None:
            scope, _, leaf = name.rpartition("/")
            shape = _shape(name)
            weight = (
                random.normal(0, 0.02, shape)
                if len(shape) == 2
                else np.full(shape, leaf == "gamma")
            )
            setattr(index_spec(spec, scope), leaf, weight.astype(np.float32))
    pieces = ["<unk>", "<s>", "</s>", "\u2581", *LETTERS]
    tokens = pieces + [f"unused{number}" for number in range(_VOCABULARY - len(pieces))]
    spec.register_source_vocabulary(tokens)
    spec.register_target_vocabulary(tokens)
    spec.validate()
    spec.optimize(quantization=quantization)
    folder.mkdir(parents=True)
    spec.save(str(folder))
    for side in ("source", "target"):
        _write_pieces(folder / f"{side}.spm")
    return folder


def _shape(name: str) -> tuple[int, ...]:
    if "embeddings" in name or "projection" in name:
        return (_VOCABULARY, _WIDTH)
    if not name.endswith("weight"):
        return (_WIDTH,)
    if "ffn" in name:
        return (4 * _WIDTH, _WIDTH) if "linear_0" in name else (_WIDTH, 4 * _WIDTH)
    if "self_attention/linear_0" in name:
        return (3 * _WIDTH, _WIDTH)
    if "/attention/linear_1" in name:
        return (2 * _WIDTH, _WIDTH)
    return (_WIDTH, _WIDTH)


def _write(model_class: Any, config: Any, folder: Path) -> None:
    import torch

    torch.manual_seed(0)
    model_class(config).save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(_PICTURES))


def _write_pieces(path: Path) -> None:
    import sentencepiece

    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([LETTERS, LETTERS[::-1]]), model_writer=model,
        vocab_size=len(LETTERS) + 4, model_type="char", minloglevel=2,
    )  # fmt: skip
    path.write_bytes(model.getvalue())
