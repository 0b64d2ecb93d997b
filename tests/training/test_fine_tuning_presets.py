"""Each preset of fine-tuning trains on a small set in the layout of its release."""

import json
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from data_pipelines.audit.audit import audit_shards
from data_pipelines.building.build import build_image_shards
from data_pipelines.captions import captions_at, read_captions
from data_pipelines.encoding.encode import encode_image_shards
from ernie_vilg.checkpoint.export import export, whole_weights
from ernie_vilg.config.audit import AuditShardsConfig
from ernie_vilg.config.pretrain import PretrainConfig
from ernie_vilg.data.sequence.sample_reader import SampleReader
from ernie_vilg.data.shards.open_shards import LocalFolder, open_shard
from ernie_vilg.evaluation.audit_page import AuditHeading, audit_html
from ernie_vilg.evaluation.charts import read_metrics
from ernie_vilg.forensics.explain_step import explain_step
from ernie_vilg.forensics.past_batch import Moved
from ernie_vilg.forensics.step_page import step_page
from ernie_vilg.model.loss import text_targets
from ernie_vilg.model.weights import read_weights
from ernie_vilg.runs.run_folder import RunFolder
from ernie_vilg.storage.files import committed_folder
from ernie_vilg.storage.shard_manifest import read_manifest
from ernie_vilg.text_tokenizer import TextTokenizer, train_text_tokenizer, write_text_tokenizer
from ernie_vilg.vocabulary import BEGIN_OF_TEXT_ID, END_OF_TEXT_ID, QUESTION_END
from ernie_vilg.vqgan.weights import save_image_tokenizer
from launch.drills.data_set import CODEBOOK_SIZE, GRID_SIZE, DataSet, untrained_vqgan
from launch.support.composition import compose_program
from tests.data.token_shards import sequence_of
from tests.distributed import run_distributed
from tests.training.fine_tuning_sets import ANSWERS, NUM_PICTURES, QUESTIONS, WRITERS, MiniatureSet
from tests.training.test_validation import train

STEPS = 30
TEXT_LENGTH = 24


@dataclass(frozen=True, kw_only=True)
class Made:
    """All sets, built and encoded, and weights to start from."""

    folder: Path
    sets: dict[str, MiniatureSet]

    def images(self, name: str) -> Path:
        return self.folder / name / "image_shards"

    def tokens(self, name: str) -> Path:
        return self.folder / name / "token_shards"

    def held_out(self, name: str) -> Path:
        return (
            self.folder / name / "validation"
            if name == "coco_cn"
            else self.tokens(name) / "held_out"
        )

    @property
    def tokenizers(self) -> DataSet:
        text, image = self.folder / "text_tokenizer", self.folder / "image_tokenizer"
        unused = self.folder / "unused"
        return DataSet(
            pairs=unused, text_tokenizer=text, image_tokenizer=image, token_shards=unused
        )


def build(output: Path, settings: list[str]) -> None:
    sizes = ["image_size=64", "samples_per_shard=5"]
    build_image_shards(compose_program("build_shards", [*settings, f"output_dir={output}", *sizes]))


def encode(made: Made, images: Path, output: Path) -> None:
    encode_image_shards(
        compose_program(
            "encode_shards",
            [
                f"shards={images}",
                f"text_tokenizer_dir={made.tokenizers.text_tokenizer}",
                f"image_tokenizer_dir={made.tokenizers.image_tokenizer}",
                f"output_dir={output}",
            ],
        )
    )


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    folder = tmp_path_factory.mktemp("sets")
    made = Made(folder=folder, sets={})
    texts = []
    for name, write in WRITERS.items():
        (folder / name).mkdir()
        made.sets[name] = write(folder / name)
        further = [] if name == "coco_cn" else made.sets[name].held_out
        build(made.images(name), [*made.sets[name].settings, *further])
        images = made.images(name)
        texts += read_captions(images, read_manifest(images, "image"))
    build(folder / "validation_images", list(made.sets["coco_cn"].held_out))
    save_image_tokenizer(untrained_vqgan(0), made.tokenizers.image_tokenizer)
    options = ["shards=unused", "output_dir=unused", "vocab_size=340", "model_type=bpe"]
    settings = compose_program("train_text_tokenizer", options)
    with committed_folder(made.tokenizers.text_tokenizer) as text_tokenizer:
        write_text_tokenizer(text_tokenizer, train_text_tokenizer(texts, settings), {})
    for name in WRITERS:
        encode(made, made.images(name), made.tokens(name))
    encode(made, folder / "validation_images", made.held_out("coco_cn"))
    return made


def run_of(made: Made, name: str, experiment: str, *settings: str) -> PretrainConfig:
    """Return a run of a preset with a model of a few thousand parameters."""
    run: PretrainConfig = compose_program(
        "pretrain",
        [
            f"experiment={experiment}", "model=quickstart", "cluster=local_cpu",
            "parallelism=data_parallel", "compile_blocks=false", "precision=fp32",
            "model.hidden_size=32", "model.num_layers=2", "model.num_heads=2",
            f"model.text_length={TEXT_LENGTH}", "model.text_vocab_size=null",
            f"model.codebook_size={CODEBOOK_SIZE}", f"model.image_grid_size={GRID_SIZE}",
            f"data.text_tokenizer={made.tokenizers.text_tokenizer}",
            f"data.image_tokenizer={made.tokenizers.image_tokenizer}",
            f"data.token_shards={made.tokens(name)}", "data.loader.num_workers=0",
            "parallelism.micro_batch_size=4", "parallelism.global_batch_size=8",
            "optimizer.warmup_steps=2", "training.log_every=1", "samples.every=0",
            f"run_dir={made.folder / name / experiment}", *settings,
        ],
    )  # fmt: skip
    return run


@pytest.fixture(scope="module")
def start(made: Made) -> Path:
    """Return weights of one step."""
    config = run_of(made, "coco", "quickstart", "training.steps=1", "checkpoint.every=1")
    run_distributed(train, 1, config)
    export(Path(config.run_dir), made.folder / "weights", overwrite=False, average=False)
    return made.folder / "weights"


@pytest.fixture(scope="module")
def tuned(made: Made, start: Path) -> Callable[[str], PretrainConfig]:
    """Return the finished run of a set's preset."""

    @cache
    def run(name: str) -> PretrainConfig:
        config = run_of(
            made, name, f"finetune_{name}", f"initialize_from={start}", f"training.steps={STEPS}",
            "optimizer.learning_rate=5.0e-3", f"checkpoint.every={STEPS // 2}",
            f"validation.every={STEPS // 2}", f"validation.shards.held_out={made.held_out(name)}",
        )  # fmt: skip
        run_distributed(train, 1, config)
        return config

    return run


def texts_of(folder: Path) -> list[list[str]]:
    manifest = read_manifest(folder, "image")
    texts = []
    for shard in manifest.shards:
        opened = open_shard(LocalFolder(str(folder)), shard)
        with opened.file:
            texts += [captions_at(opened, at, is_several=True) for at in range(shard.samples)]
    return texts


@pytest.mark.parametrize("name", WRITERS)
def test_every_picture_of_the_split_has_its_texts(made: Made, name: str) -> None:
    found = texts_of(made.images(name))
    if name == "coco_cn":
        assert [len(each) for each in texts_of(made.folder / "validation_images")] == [1, 1, 1]
    else:
        held_out = texts_of(made.images(name) / "held_out")
        assert 0 < len(held_out) < NUM_PICTURES / 2
        found += held_out

    of_set = made.sets[name]
    assert len(found) == of_set.samples
    assert sorted(found) == sorted(list(texts) for texts in of_set.texts)


@pytest.mark.distributed
@pytest.mark.parametrize("name", WRITERS)
def test_preset_learns_its_own_direction(
    tuned: Callable[[str], PretrainConfig], start: Path, name: str
) -> None:
    config = tuned(name)

    direction = "text_to_image" if name == "coco" else "image_to_text"
    losses = [
        entry[f"loss_{direction}"]
        for entry in read_metrics(RunFolder(Path(config.run_dir)).metrics)
        if f"loss_{direction}" in entry
    ]
    assert losses[-1] < 0.8 * losses[0]
    validations = RunFolder(Path(config.run_dir)).validations.read_text().splitlines()
    assert [json.loads(line)["step"] for line in validations] == [STEPS // 2, STEPS]
    assert config.validation.best == f"held_out/loss_{direction}"

    # Nothing but decay moves the other direction where it has no weight.
    _, before = read_weights(start)
    after = whole_weights(RunFolder(Path(config.run_dir)).checkpoint(STEPS), average=False)[1]
    (image_head,) = [key for key in after if key.endswith("image_logits.weight")]
    moved = (after[image_head] - before[image_head]).norm() / before[image_head].norm()
    assert (moved > 0.02) == (name == "coco"), moved


def test_batches_of_questions_predict_answers_alone(made: Made) -> None:
    folder = made.tokens("fmiqa")
    manifest = read_manifest(folder, "token")
    model = run_of(made, "fmiqa", "finetune_fmiqa").model
    with closing(SampleReader(sequence_of(folder, manifest, model))) as reader:
        batch = reader.read(np.arange(manifest.num_samples)).content

    encode = TextTokenizer.load(made.tokenizers.text_tokenizer).encode
    answers = {
        question: encode(answer) for question, answer in zip(QUESTIONS, ANSWERS, strict=True)
    }
    num_targets = 0
    for slots in batch.text.tolist():
        begin = slots.index(BEGIN_OF_TEXT_ID)
        (answer,) = [answers[text] for text in QUESTIONS if encode(text) == slots[:begin]]
        rest = [*answer, END_OF_TEXT_ID]
        assert slots[begin + 1 : begin + 1 + len(rest)] == rest
        num_targets += len(rest)
    assert text_targets(batch.text).sum() == num_targets
    questions = read_manifest(folder, "token").settings["num_questions"]
    assert questions == manifest.settings["num_captions"] == 2 * manifest.num_samples


def test_the_audit_of_questions_passes_and_its_page_names_both_parts(made: Made) -> None:
    config = AuditShardsConfig(
        image_shards=str(made.images("fmiqa")),
        token_shards=str(made.tokens("fmiqa")),
        text_tokenizer_dir=str(made.tokenizers.text_tokenizer),
        image_tokenizer_dir=str(made.tokenizers.image_tokenizer),
        output_dir=str(made.folder / "audit"),
        text_length=TEXT_LENGTH,
    )

    audit = audit_shards(config, made.folder)

    assert audit.failed == []
    page = audit_html(audit, AuditHeading(command="", seconds=1.0, text_length=TEXT_LENGTH))
    assert f"Q: {QUESTIONS[0]} A: {ANSWERS[0]}" in page
    assert QUESTION_END not in page


@pytest.mark.distributed
def test_the_page_of_a_step_shows_question_and_answer(
    tuned: Callable[[str], PretrainConfig],
) -> None:
    config = tuned("fmiqa")

    explanation = explain_step(
        Path(config.run_dir),
        STEPS,
        max_samples=8,
        moved=Moved(token_shards={}),
        measure_losses=None,
    )

    texts = {QUESTION_END.join(pair) for pair in zip(QUESTIONS, ANSWERS, strict=True)}
    assert {sample.text for sample in explanation.samples} <= texts
    assert all(sample.text == sample.caption for sample in explanation.samples)
    page = step_page(explanation)
    assert "Q: " in page
    assert QUESTION_END not in page
