"""A step's batch is rebuilt as it was trained on, or the explanation says why it is uncertain."""

import io
import json
import shutil
import tarfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from data_pipelines.encoding.token_shard import npy_bytes, text_of
from data_pipelines.shard_writer import write_shard
from ernie_vilg.config.data import MixtureChangeConfig, MixtureDataSetConfig
from ernie_vilg.config.launch import Launch
from ernie_vilg.config.pretrain import PretrainConfig
from ernie_vilg.data.shards.open_shards import read_shard
from ernie_vilg.forensics.explain_step import (
    ExplainedSample,
    MeasureLosses,
    StepExplanation,
    explain_step,
    outliers,
)
from ernie_vilg.forensics.past_batch import Moved
from ernie_vilg.forensics.sample_losses import measure_sample_losses, nearest_checkpoint
from ernie_vilg.storage.shard_manifest import read_manifest, write_manifest
from ernie_vilg.text_tokenizer import TextTokenizer
from ernie_vilg.vocabulary import caption_ids, text_slots
from launch.drills.data_set import DataSet, make_data_set
from tests.distributed import run_distributed
from tests.forensics.past_run import consume, run_config
from tests.training.runs import pretrain_here


@pytest.fixture(scope="module")
def encoded(tmp_path_factory: pytest.TempPathFactory) -> DataSet:
    """24 pairs in shards of 10, 10 and 4, with their pictures."""
    return make_data_set(tmp_path_factory.mktemp("encoded"), keep_pixels=True)


@pytest.fixture
def data(encoded: DataSet, tmp_path: Path) -> DataSet:
    """The same pairs in shards that a test may damage."""
    shutil.copytree(encoded.token_shards, tmp_path / "shards")
    return replace(encoded, token_shards=tmp_path / "shards")


def explain(
    run_dir: Path | str,
    step: int,
    *,
    moved: dict[str, str] | None = None,
    max_samples: int = 64,
    losses: MeasureLosses | None = None,
) -> StepExplanation:
    return explain_step(
        Path(run_dir),
        step,
        max_samples=max_samples,
        moved=Moved(token_shards=moved or {}),
        measure_losses=losses,
    )


def codes_in_file(shards: Path, samples: Sequence[ExplainedSample]) -> np.ndarray:
    """Return the codes that the tars hold under the samples' shards and keys."""
    codes = []
    for sample in samples:
        with tarfile.open(shards / sample.shard) as archive:
            member = archive.extractfile(f"{sample.key}.codes.npy")
            assert member is not None
            codes.append(np.load(io.BytesIO(member.read())).ravel())
    return np.stack(codes)


def quarantine(config: PretrainConfig, **entry: str) -> None:
    Path(config.run_dir).mkdir(parents=True, exist_ok=True)
    (Path(config.run_dir) / "quarantine.jsonl").write_text(json.dumps(entry) + "\n")


def damage(shards: Path, file: str) -> Callable[[], None]:
    """Flip a bit of a shard; return a function that repairs it."""
    path = shards / file
    whole = path.read_bytes()
    path.write_bytes(whole[:600] + bytes([whole[600] ^ 1]) + whole[601:])
    return lambda: path.write_bytes(whole) and None


def test_the_samples_are_those_that_the_step_was_trained_on(data: DataSet, tmp_path: Path) -> None:
    config = run_config(tmp_path, data)
    consumed = consume(config, range(1, 7))  # two epochs of 24 samples

    for step in (1, 3, 6):
        explanation = explain(config.run_dir, step)

        samples = explanation.samples
        assert explanation.doubts == ()
        assert [sample.position for sample in samples] == [*range(8 * step - 8, 8 * step)]
        assert (codes_in_file(data.token_shards, samples) == consumed[step].codes).all()
        captions = [sample.caption for sample in samples]
        assert [sample.text for sample in samples] == captions
        assert {sample.epoch for sample in samples} == {0 if step <= 3 else 1}


def with_second_captions(data: DataSet) -> None:
    """Give every sample a second caption: the first caption of the sample before it."""
    tokenizer = TextTokenizer.load(data.text_tokenizer)
    manifest = read_manifest(data.token_shards, "token")
    shards = []
    for shard in manifest.shards:
        samples = read_shard(data.token_shards, shard)
        captions = [json.loads(sample["json"])["caption"] for sample in samples]
        for index, sample in enumerate(samples):
            both = [captions[index], captions[index - 1]]
            ids = [tokenizer.encode(caption) for caption in both]
            sample["json"] = json.dumps({"caption": both[0], "captions": both}).encode()
            sample["text.npy"] = npy_bytes(text_of(ids))
        path = data.token_shards / shard.file
        written = write_shard(path, iter(samples), members=shard.members)
        assert written is not None
        shards.append(written)
    settings = {**manifest.settings, "max_captions_per_picture": 2, "num_captions": 48}
    settings["caption_lengths"] = {"3": 48}
    write_manifest(data.token_shards, replace(manifest, shards=tuple(shards), settings=settings))


def test_of_several_captions_the_one_that_was_read_is_shown(data: DataSet, tmp_path: Path) -> None:
    with_second_captions(data)
    config = run_config(tmp_path, data)
    consume(config, range(1, 4))

    samples = [sample for step in (1, 2, 3) for sample in explain(config.run_dir, step).samples]

    tokenizer = TextTokenizer.load(data.text_tokenizer)
    number = 0
    for sample in samples:
        shown = caption_ids(text_slots(tokenizer.encode(sample.caption), 12))
        assert sample.text == tokenizer.decode(shown)
        with tarfile.open(data.token_shards / sample.shard) as archive:
            record = archive.extractfile(f"{sample.key}.json")
            assert record is not None
            number += json.loads(record.read())["captions"].index(sample.caption)
    assert 4 < number < 20  # about half of 24 are second captions


def test_rank_and_pass_are_those_of_the_layout(data: DataSet, tmp_path: Path) -> None:
    config = run_config(tmp_path, data)
    consume(config, range(1, 2))

    samples = explain(config.run_dir, 1).samples

    # 8 samples over 2 replicas, 2 per pass.
    assert [sample.data_rank for sample in samples] == [0, 0, 0, 0, 1, 1, 1, 1]
    assert [sample.micro_batch for sample in samples] == [0, 0, 1, 1, 0, 0, 1, 1]


def test_pictures_come_from_the_codes_and_from_the_shards(data: DataSet, tmp_path: Path) -> None:
    config = run_config(tmp_path, data)
    consume(config, range(1, 2))

    explanation = explain(config.run_dir, 1, max_samples=2)

    assert len(explanation.shown) == 2
    assert len(explanation.listed) == 6
    for sample in explanation.shown:
        assert sample.picture is not None
        assert sample.original is not None
        assert sample.picture.shape == sample.original.shape == (64, 64, 3)
        assert (sample.original == 255).mean() > 0.5  # shapes stand on white


def test_a_replaced_sample_says_for_which_and_why(data: DataSet, tmp_path: Path) -> None:
    config = run_config(tmp_path, data)
    consume(config, range(1, 2))
    (unwanted, *rest) = explain(config.run_dir, 1).samples
    quarantine(config, key=unwanted.key, shard=unwanted.shard, reason="watermark")
    consumed = consume(config, range(1, 2))

    explanation = explain(config.run_dir, 1)

    (replaced, *others) = explanation.samples
    assert explanation.doubts == ()
    assert (codes_in_file(data.token_shards, explanation.samples) == consumed[1].codes).all()
    assert [sample.key for sample in others] == [sample.key for sample in rest]
    assert replaced.key != unwanted.key
    assert replaced.left_out is not None
    assert (replaced.left_out.key, replaced.left_out.reason) == (
        unwanted.key, "in quarantine: watermark",
    )  # fmt: skip
    assert len(explanation.history.earlier) == 1


def test_the_quarantine_is_that_of_the_time(data: DataSet, tmp_path: Path) -> None:
    config = run_config(tmp_path, data)
    before = consume(config, range(1, 3))
    quarantine(config, key=explain(config.run_dir, 1).samples[0].key)
    consume(config, range(3, 4))

    explanation = explain(config.run_dir, 1)

    assert explanation.doubts == ()
    assert all(sample.left_out is None for sample in explanation.samples)
    assert (codes_in_file(data.token_shards, explanation.samples) == before[1].codes).all()


def test_a_missing_quarantine_makes_the_batch_uncertain(data: DataSet, tmp_path: Path) -> None:
    config = run_config(tmp_path, data)
    quarantine(config, key="00000003")
    consume(config, range(1, 2))
    (file,) = (tmp_path / "run/ledger").glob("quarantine-*")
    file.unlink()
    assert explain(config.run_dir, 1).doubts == ()  # the run's own is still that of the time

    quarantine(config, key="00000004")

    (doubt,) = explain(config.run_dir, 1).doubts
    assert "the quarantine of that time is missing" in doubt


def test_what_was_damaged_then_stays_left_out_after_its_repair(
    data: DataSet, tmp_path: Path
) -> None:
    config = run_config(tmp_path, data, damage="skip")
    repair = damage(data.token_shards, "tokens-00001.tar")
    consumed = consume(config, range(1, 4))
    repair()

    explanations = {step: explain(config.run_dir, step) for step in consumed}

    for step, explanation in explanations.items():
        assert explanation.doubts == ()
        codes = codes_in_file(data.token_shards, explanation.samples)
        assert (codes == consumed[step].codes).all()
        assert all(sample.shard != "tokens-00001.tar" for sample in explanation.samples)
    left_out = [
        sample.left_out
        for explanation in explanations.values()
        for sample in explanation.samples
        if sample.left_out is not None
    ]
    assert len(left_out) == 10
    assert all("damaged (sha256)" in own.reason and own.key for own in left_out)


def test_steps_of_several_launches_are_those_that_were_trained_on(
    data: DataSet, tmp_path: Path
) -> None:
    """The second launch resumes from an earlier step; the third trains on another order."""
    config = run_config(tmp_path, data)
    first = consume(config, range(1, 5))
    second = consume(config, range(3, 4))
    other = replace(config, data=replace(config.data, seed=config.data.seed + 1))
    third = consume(other, range(4, 6))

    explanations = {step: explain(config.run_dir, step) for step in range(1, 6)}

    for step, explanation in explanations.items():
        codes = codes_in_file(data.token_shards, explanation.samples)
        assert (codes == (first | second | third)[step].codes).all()
        assert explanation.history.is_in_effect
    assert [explanations[step].history.record.launch for step in range(1, 6)] == [1, 1, 2, 3, 3]
    assert [len(explanations[step].history.earlier) for step in range(1, 6)] == [0, 0, 1, 1, 0]
    with pytest.raises(ValueError, match=r"step=6 is not in the ledger .* steps 1 to 5"):
        explain(config.run_dir, 6)


def test_an_unreadable_line_of_the_ledger_makes_the_batch_uncertain(
    data: DataSet, tmp_path: Path
) -> None:
    config = run_config(tmp_path, data)
    consume(config, range(1, 2))
    with (tmp_path / "run/ledger/steps.jsonl").open("a") as file:
        file.write("{\n")

    assert "1 line(s) of the ledger cannot be read" in explain(config.run_dir, 1).doubts[0]


def test_new_damage_makes_what_stands_for_it_uncertain(data: DataSet, tmp_path: Path) -> None:
    config = run_config(tmp_path, data, damage="skip")
    repair = damage(data.token_shards, "tokens-00001.tar")
    consumed = consume(config, range(1, 4))
    repair()
    damage(data.token_shards, "tokens-00000.tar")

    explanation = explain(config.run_dir, 3)

    codes = codes_in_file(data.token_shards, explanation.samples)
    differs = (codes != consumed[3].codes).any(axis=1)
    is_doubtful = np.array([bool(sample.doubt) for sample in explanation.samples])
    assert differs.any()
    assert (is_doubtful | ~differs).all()
    assert f"{is_doubtful.sum()} of its 8 samples may have been others" in explanation.doubts[0]


def test_damage_where_the_run_met_none_is_refused(data: DataSet, tmp_path: Path) -> None:
    config = run_config(tmp_path, data)
    consume(config, range(1, 2))
    for shard in range(3):
        damage(data.token_shards, f"tokens-{shard:05d}.tar")

    with pytest.raises(ValueError, match=r"tokens-0000\d.tar differs from the manifest's SHA-256"):
        explain(config.run_dir, 1)


def test_a_mixture_is_rebuilt_across_a_change_of_weights(data: DataSet, tmp_path: Path) -> None:
    shutil.copytree(data.token_shards, tmp_path / "more")
    config = run_config(tmp_path, data)
    mixture = {
        name: MixtureDataSetConfig(token_shards=str(tmp_path / name), weight=weight)
        for name, weight in (("shards", 0.75), ("more", 0.25))
    }
    change = MixtureChangeConfig(step=2, weights={"shards": 0.0, "more": 1.0})
    mixed = replace(config.data, token_shards=None, mixture=mixture, mixture_changes=(change,))
    consumed = consume(replace(config, data=mixed), range(1, 4))

    explanations = {step: explain(config.run_dir, step) for step in consumed}

    for step, explanation in explanations.items():
        codes = codes_in_file(data.token_shards, explanation.samples)
        assert (codes == consumed[step].codes).all()
    names = [{sample.data_set for sample in explanations[step].samples} for step in (1, 3)]
    assert names == [{"shards", "more"}, {"more"}]


def test_moved_shards_are_named(data: DataSet, tmp_path: Path) -> None:
    config = run_config(tmp_path, data)
    consume(config, range(1, 2))
    before = explain(config.run_dir, 1)
    data.token_shards.rename(tmp_path / "elsewhere")

    with pytest.raises(
        ValueError, match=r"shards 'main' cannot be read, say .*\+token_shards.main="
    ):
        explain(config.run_dir, 1)
    with pytest.raises(ValueError, match="token_shards names other: the run's data sets are main"):
        explain(config.run_dir, 1, moved={"other": str(tmp_path / "elsewhere")})
    after = explain(config.run_dir, 1, moved={"main": str(tmp_path / "elsewhere")})

    assert [sample.key for sample in after.samples] == [sample.key for sample in before.samples]


def test_other_shards_are_refused(data: DataSet, tmp_path: Path) -> None:
    config = run_config(tmp_path, data)
    consume(config, range(1, 2))
    manifest = data.token_shards / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"samples": 4,', '"samples": 3,'))

    with pytest.raises(ValueError, match="does not hold the shards 'main' that the run read"):
        explain(config.run_dir, 1)


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"has no run\.json: name the run_dir of"):
        explain(tmp_path, 1)


def test_one_loss_far_above_the_others_is_an_outlier() -> None:
    losses = np.array([1.0, 1.1, 0.9, 1.05, 0.95, 3.0, 0.1])

    assert outliers(losses).tolist() == [False, False, False, False, False, True, False]
    assert not outliers(np.ones(4)).any()


def train(launch: Launch, config: PretrainConfig) -> None:
    pretrain_here(launch, config)


@pytest.fixture(scope="module")
def trained(encoded: DataSet, tmp_path_factory: pytest.TempPathFactory) -> PretrainConfig:
    """A run that was trained for two steps, with a checkpoint of each."""
    config = run_config(tmp_path_factory.mktemp("trained"), encoded)
    config = replace(
        config,
        training=replace(config.training, steps=2),
        checkpoint=replace(config.checkpoint, every=1),
        tracking=replace(config.tracking, wandb_mode="disabled"),
    )
    run_distributed(train, 1, config)
    return config


def copy_with_checkpoints(run_dir: str, folder: Path, *steps: int) -> Path:
    """Copy a run with some of its checkpoints only."""
    shutil.copytree(run_dir, folder)
    for path in (folder / "checkpoints").glob("step_*"):
        if path.name not in {f"step_{step:08d}" for step in steps}:
            shutil.rmtree(path)
    return folder


@pytest.mark.distributed
def test_mean_losses_before_a_step_are_those_that_training_logged(
    trained: PretrainConfig, tmp_path: Path
) -> None:
    run_dir = copy_with_checkpoints(trained.run_dir, tmp_path / "run", 1)

    explanation = explain(run_dir, 2, losses=measure_sample_losses)

    assert explanation.checkpoint_step == 1
    logged = json.loads((run_dir / "metrics.jsonl").read_text().splitlines()[1])
    samples = explanation.samples
    tokenizer = TextTokenizer.load(Path(trained.data.text_tokenizer))
    pieces = [min(len(tokenizer.encode(sample.caption)) + 1, 12) for sample in samples]
    image = np.mean([sample.text_to_image for sample in samples])
    text = np.average([sample.image_to_text for sample in samples], weights=pieces)
    assert image == pytest.approx(logged["loss_text_to_image"], rel=1e-5)
    assert text == pytest.approx(logged["loss_image_to_text"], rel=1e-5)
    totals = [(sample.text_to_image or 0) + (sample.image_to_text or 0) for sample in samples]
    assert totals == sorted(totals, reverse=True)


@pytest.mark.distributed
def test_the_checkpoint_is_the_nearest_up_to_the_step_or_else_after_it(
    trained: PretrainConfig, tmp_path: Path
) -> None:
    both = copy_with_checkpoints(trained.run_dir, tmp_path / "both", 1, 2)
    later = copy_with_checkpoints(trained.run_dir, tmp_path / "later", 2)
    none = copy_with_checkpoints(trained.run_dir, tmp_path / "none")

    assert nearest_checkpoint(both, 1).name == "step_00000001"
    assert nearest_checkpoint(both, 5).name == "step_00000002"
    assert nearest_checkpoint(later, 1).name == "step_00000002"
    with pytest.raises(ValueError, match=r"losses=true needs a checkpoint .* above step 0"):
        explain(none, 1, losses=measure_sample_losses)
