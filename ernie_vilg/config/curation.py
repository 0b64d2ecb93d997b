"""Settings of curation: the rules for pictures and captions, their models, and deduplication."""

from collections.abc import Iterable, Mapping
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
from ernie_vilg.errors import InputError

LANGUAGES = (
    "af als am an ar arz as ast av az azb ba bar bcl be bg bh bn bo bpy br bs bxr ca cbk ce ceb "
    "ckb co cs cv cy da de diq dsb dty dv el eml en eo es et eu fa fi fr frr fy ga gd gl gn gom "
    "gu gv he hi hif hr hsb ht hu hy ia id ie ilo io is it ja jbo jv ka kk km kn ko krc ku kv "
    "kw ky la lb lez li lmo lo lrc lt lv mai mg mhr min mk ml mn mr mrj ms mt mwl my myv mzn "
    "nah nap nds ne new nl nn no oc or os pa pam pfl pl pms pnb ps pt qu rm ro ru rue sa sah sc "
    "scn sco sd sh si sk sl so sq sr su sv sw ta te tg th tk tl tr tt tyv ug uk ur uz vec vep "
    "vi vls vo wa war wuu xal xmf yi yo yue zh"
)
"""Languages that fastText's lid.176 tells apart, by their codes."""

Sha256 = Annotated[str, Matching(pattern="[0-9a-f]{64}", words="64 hexadecimal digits")]


@dataclass(frozen=True, kw_only=True)
class Rules:
    """Rules for the pairs of one source; a rule at its default is off.

    The transforms come first. Then a pair is rejected by the first rule that it breaks, in this
    order. `CurationConfig` checks the values.
    """

    translate: bool = False
    """Whether captions are replaced by their translation: `curation.translation_model` or
    `curation.translation_file`."""
    to_simplified: bool = False
    """Whether traditional characters become simplified ones; the metadata say where."""
    min_characters: NaturalInt = 0
    """Fewest characters of a caption, spaces included; 0 allows any number."""
    max_characters: PositiveInt | None = None
    """Most characters of a caption, spaces included."""
    special_characters: Literal["allow", "refuse"] = "allow"
    """Whether a caption may hold characters that are neither letters, digits, white space nor
    common punctuation; data_pipelines/curation/text.py defines them."""
    min_han_share: Fraction | None = None
    """Smallest share of Chinese characters among a caption's letters, 0 to 1."""
    languages: tuple[str, ...] = ()
    """Accepted languages by their ISO 639-1 codes, such as [zh]; empty accepts all."""
    min_language_score: Fraction = 0.0
    """Smallest score of the language, 0 to 1: the share of its script, or fastText's
    probability."""
    max_words: PositiveInt | None = None
    """Most words of a caption, as jieba splits it; punctuation does not count."""
    min_nouns: NaturalInt = 0
    """Fewest nouns among the words of a caption, as jieba tags them; 0 needs none."""
    animated: Literal["allow", "refuse"] = "allow"
    """Whether animations are accepted, of which the first frame is taken."""
    min_side: PositiveInt | None = None
    """Smallest width and height of a picture, pixels."""
    max_aspect_ratio: Annotated[float, Range(at_least=1)] | None = None
    """Largest ratio of a picture's longer side to its shorter one."""
    min_contrast: PositiveFloat | None = None
    """Smallest standard deviation of a picture's grey values, which go from 0 to 255; 2 refuses
    single colours."""
    max_text_area: Fraction | None = None
    """Largest share of a picture's area that text covers, 0 to 1."""
    min_similarity: Annotated[float, Range(at_least=-1, at_most=1)] | None = None
    """Smallest similarity of picture and caption by `curation.similarity_model`."""
    max_nsfw: Fraction | None = None
    """Largest probability that a picture is not safe for work, by `curation.nsfw_model`."""
    max_watermark: Fraction | None = None
    """Largest probability that a picture has a watermark, by `curation.watermark_model`."""

    def check(self, key: str) -> None:
        """Check the rules against each other.

        Args:
            key: their key, such as curation.rules.web.

        Raises:
            InputError: no pair could satisfy all of them, or one has no effect.
        """
        if self.max_characters is not None and self.min_characters > self.max_characters:
            raise InputError(
                f"{key}.min_characters={self.min_characters} with max_characters="
                f"{self.max_characters}: no caption has both; lower min_characters"
            )
        if self.max_words is not None and self.min_nouns > self.max_words:
            raise InputError(
                f"{key}.min_nouns={self.min_nouns} with max_words={self.max_words}: every noun is "
                "a word; lower min_nouns"
            )
        if self.min_language_score > 0 and not self.languages:
            raise InputError(
                f"{key}.min_language_score={self.min_language_score} with languages=[]: it has no "
                "effect; name the accepted languages, or set it to 0"
            )
        if unknown := [code for code in self.languages if code not in LANGUAGES.split()]:
            raise InputError(
                f"{key}.languages=[{','.join(self.languages)}]: {unknown[0]} is no language "
                f"that is told apart; choose from {LANGUAGES}. Chinese is zh"
            )
        is_han = bool({"zh", "ja", "ko"} & set(self.languages))
        if self.languages and not is_han and (self.min_han_share or 0) > 0.5:
            raise InputError(
                f"{key}.min_han_share={self.min_han_share} with languages="
                f"[{','.join(self.languages)}]: mostly Chinese characters are zh, ja or ko; set "
                "min_han_share to null"
            )


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
    """Smallest Jaccard similarity of different captions that are near-duplicates, of which one is
    kept."""
    keep: Literal["largest", "first"] = "largest"
    """The one of several near-duplicate pictures that is kept: the one with most pixels, or the
    first of the input."""
    against: tuple[LocalInput, ...] = ()
    """Evaluation sets whose pairs must not be trained on: lists of hashes or ids, or folders of
    shards with metadata."""
    memory: Annotated[str, Matching(pattern="[1-9][0-9]*GB", words="gigabytes such as 2GB")] = "2GB"
    """Most memory of the database."""


@dataclass(frozen=True, kw_only=True)
class CurationConfig(Settings, section="curation"):
    """Rules for what is kept of the raw pairs. `conf/curation/` has presets."""

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

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, rules in self.rules.items():
            rules.check(f"curation.rules.{name}")
        if self.similarity_sha256 is not None and self.similarity_model is None:
            raise InputError(
                "curation.similarity_sha256 without similarity_model: name the model's folder"
            )
        if self.translation_prefix is not None and self.translation_model is None:
            raise InputError(
                f"curation.translation_prefix={self.translation_prefix} without translation_model: "
                "name the model's folder, or leave the prefix out"
            )
        if self.translation_model is not None and self.translation_file is not None:
            raise InputError(
                f"curation.translation_model={self.translation_model} and translation_file="
                f"{self.translation_file}: set one of them to null"
            )

    def rules_of(self, sources: Mapping[str, str | None]) -> Mapping[str, str | None]:
        """Return the name of each source's rules, and check what these rules need.

        Args:
            sources: every source by its name, and the rules that it asks for.

        Returns:
            the same sources with the name of their rules in `rules`; None has no rules.

        Raises:
            InputError: a source asks for rules that do not exist, gets none although others exist,
                or its rules need a model that is not named; or no rule uses a model that is.
        """
        names = {source: self._rules_name(source, wanted) for source, wanted in sources.items()}
        self._check_models({name for name in names.values() if name is not None})
        return names

    def _rules_name(self, source: str, wanted: str | None) -> str | None:
        known = f"curation.rules has {', '.join(self.rules) or 'no entry'}"
        if wanted is not None:
            if wanted not in self.rules:
                raise InputError(f"rules={wanted} of source {source!r}: {known}; name one of them")
            return wanted
        for name in (source, "default"):
            if name in self.rules:
                return name
        if self.rules:
            raise InputError(
                f"source {source!r}: {known}, and none of them is for it; name one by "
                "rules=NAME, or set curation.rules.default={} to accept every pair"
            )
        return None

    def _check_models(self, names: Iterable[str]) -> None:
        used = [(f"curation.rules.{name}", self.rules[name]) for name in sorted(names)]
        needs = {
            "similarity_model": ("min_similarity", self.similarity_model),
            "nsfw_model": ("max_nsfw", self.nsfw_model),
            "watermark_model": ("max_watermark", self.watermark_model),
            "translation_model or translation_file": (
                "translate",
                self.translation_model or self.translation_file,
            ),
        }
        for model, (rule, value) in needs.items():
            users = [key for key, rules in used if getattr(rules, rule) not in (None, False)]
            if users and value is None:
                off = "false" if rule == "translate" else "null"
                raise InputError(
                    f"{users[0]}.{rule} without a model: set curation.{model}, or "
                    f"{users[0]}.{rule}={off}"
                )
            if value is not None and not users:
                raise InputError(
                    f"curation.{model}={value}: no source has rules with {rule}, so it has no "
                    f"effect; set {rule}, or leave the model out"
                )
