"""Settings of curation: the rules for pictures and captions, their models, and deduplication."""

from dataclasses import dataclass, field
from typing import Annotated, Literal

from ernie_vilg.config.generation import Device
from ernie_vilg.config.schema import (
    Fraction,
    LocalInput,
    Matching,
    NaturalInt,
    PositiveFloat,
    PositiveInt,
    Range,
    Settings,
)

Sha256 = Annotated[str, Matching(pattern="[0-9a-f]{64}", words="64 hexadecimal digits")]


@dataclass(frozen=True, kw_only=True)
class Rules(Settings):
    """Rules for the pairs of one source; a rule that is null or false is off.

    A pair is rejected by the first rule that it breaks, in this order.
    """

    to_simplified: bool = False
    """Whether traditional characters become simplified ones; the metadata say where."""
    translate: bool = False
    """Whether captions are replaced by their translation: `curation.translation_model` or
    `curation.translation_file`."""
    min_characters: NaturalInt = 0
    """Fewest characters of a caption."""
    max_characters: PositiveInt | None = None
    """Most characters of a caption."""
    special_characters: Literal["allow", "refuse"] = "allow"
    """Whether a caption may hold characters that are neither letters, digits, white space nor
    common punctuation."""
    min_han_share: Fraction | None = None
    """Smallest share of Chinese characters among a caption's letters."""
    languages: tuple[str, ...] = ()
    """Accepted languages by their ISO 639-1 codes, such as [zh]; empty accepts all."""
    min_language_score: Fraction = 0.0
    """Smallest confidence in the language."""
    max_words: PositiveInt | None = None
    """Most words of a caption."""
    min_nouns: NaturalInt = 0
    """Fewest nouns of a caption."""
    animated: Literal["allow", "refuse"] = "allow"
    """Whether animations are accepted, of which the first frame is taken."""
    min_side: PositiveInt | None = None
    """Smallest width and height of a picture, pixels."""
    max_aspect_ratio: Annotated[float, Range(at_least=1)] | None = None
    """Largest ratio of a picture's longer side to its shorter one."""
    min_contrast: PositiveFloat | None = None
    """Smallest standard deviation of a picture's grey values, of 255; 2 refuses single colours."""
    max_text_area: Fraction | None = None
    """Largest share of a picture that is covered by text."""
    min_similarity: Annotated[float, Range(at_least=-1, at_most=1)] | None = None
    """Smallest similarity of picture and caption by `curation.similarity_model`."""
    max_nsfw: Fraction | None = None
    """Largest probability that a picture is not safe for work, by `curation.nsfw_model`."""
    max_watermark: Fraction | None = None
    """Largest probability that a picture has a watermark, by `curation.watermark_model`."""


@dataclass(frozen=True, kw_only=True)
class DeduplicationConfig(Settings, section="curation.deduplication"):
    """Rules about pairs that resemble each other, over all sources and shards."""

    exact_pictures: bool = False
    """Whether only one of several pictures with the same pixels is kept."""
    near_pictures: Annotated[int, Range(at_least=0, at_most=64)] | None = None
    """Largest Hamming distance of the 256-bit PDQ hashes of near-duplicate pictures, of which one
    is kept; 31 is usual."""
    max_pairs_per_text: PositiveInt | None = None
    """Most pairs with the same caption after normalisation."""
    near_texts: Annotated[float, Range(above=0, at_most=1)] | None = None
    """Smallest Jaccard similarity of near-duplicate captions, of which one is kept."""
    keep: Literal["largest", "first"] = "largest"
    """Which of several near-duplicate pictures is kept: the one with most pixels, or the first of
    the input."""
    against: tuple[str, ...] = ()
    """Evaluation sets whose pairs must not be trained on: lists of hashes or ids, or folders of
    shards with metadata."""
    memory: Annotated[str, Matching(pattern="[1-9][0-9]*GB", words="gigabytes such as 2GB")] = "2GB"
    """Most memory of the database."""


@dataclass(frozen=True, kw_only=True)
class CurationConfig(Settings, section="curation"):
    """What is kept of the raw pairs. `conf/curation/` has presets."""

    rules: dict[str, Rules] = field(default_factory=dict)
    """Rules by name. A source takes the rules that it names, else those of its own name, else
    `default`."""
    similarity_model: LocalInput | None = None
    """Folder of a ChineseCLIP model of transformers."""
    similarity_sha256: Sha256 | None = None
    """Required hash of that model; null takes any, and the manifest records it."""
    nsfw_model: LocalInput | None = None
    """Folder of an image classifier of transformers for `max_nsfw`."""
    watermark_model: LocalInput | None = None
    """Folder of an image classifier of transformers for `max_watermark`."""
    translation_model: LocalInput | None = None
    """Folder of a ctranslate2 model."""
    translation_file: LocalInput | None = None
    """File of translations, one JSON object per line: {"text": ..., "translation": ...}."""
    translation_prefix: str | None = None
    """Token before each caption that names the language of the translation, such as
    ">>cmn_Hans<<"; null for models of one language."""
    device: Device = "auto"
    """Device of the models but for the detector of text: cpu, cuda, cuda:1, or auto, a GPU if there
    is one. Scores of different kinds of device differ in their last digits."""
    deduplication: DeduplicationConfig = field(default_factory=DeduplicationConfig)
    """Rules about pairs that resemble each other."""
