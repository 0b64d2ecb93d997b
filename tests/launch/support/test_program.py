"""A program turns its options into settings, or prints one message."""

import os
import pickle
import re
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from ernie_vilg.config.curation import CurationConfig, Rules
from ernie_vilg.config.data import MixtureChangeConfig, MixtureDataSetConfig, PretrainDataConfig
from ernie_vilg.config.generation import CaptionConfig
from ernie_vilg.config.launch import Launch, RendezvousError
from ernie_vilg.config.shards import BuildShardsConfig
from ernie_vilg.errors import InputError
from ernie_vilg.runs.run_lock import RunLock
from launch.support.composition import compose_program
from launch.support.program import CONF_FOLDER, program

ROOT = CONF_FOLDER.parent


def start(
    words: list[str], *, rank: int, world_size: int, **variables: str
) -> subprocess.CompletedProcess[str]:
    """Start one rank of a pretraining run like a launcher."""
    place = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world_size)}
    return subprocess.run(
        [sys.executable, "launch/pretrain.py", "experiment=quickstart", *words],
        cwd=ROOT,
        env={"PATH": "", "PYTHONPATH": str(ROOT), **place, **variables},
        capture_output=True,
        text=True,
        timeout=10,
        check=False,
    )


@pytest.mark.parametrize(
    ("words", "world_size", "message"),
    [
        pytest.param(["training.step=3"], 1, "Key 'step' not in 'TrainingConfig'", id="mistyped"),
        pytest.param(["training.steps=x"], 1, "could not be converted to Integer", id="type"),
        pytest.param(
            ["parallelism.tensor_parallel_size=2"],
            3,
            "world size 3 is no multiple of parallelism.tensor_parallel_size=2",
            id="world size",
        ),
        pytest.param(
            ["parallelism.tensor_parallel_size=8"],
            8,
            "model.num_heads=4 is not divisible by parallelism.tensor_parallel_size=8",
            id="heads",
        ),
        pytest.param(
            ["parallelism.pipeline_parallel_size=2", "parallelism.zero_stage=2"],
            2,
            "set parallelism.zero_stage=1",
            id="ZeRO 2 under a pipeline",
        ),
        pytest.param(
            ["parallelism.global_batch_size=50"],
            2,
            "set parallelism.global_batch_size=48 or 56",
            id="global batch",
        ),
        pytest.param(
            ["model.num_heads=5"], 1, "model.num_heads=5 does not divide", id="heads of width"
        ),
        pytest.param(["data.token_shards=nowhere"], 1, "nowhere is not a folder", id="path"),
        pytest.param(
            ["+data.mixture={cc:{token_shards:a,weigth:2}}"],
            1,
            "Key 'weigth' not in 'MixtureDataSetConfig'",
            id="mistyped in a dict",
        ),
        pytest.param(["optimizer.learning_rate=-1"], 1, "must be above 0", id="negative rate"),
    ],
)
def test_a_wrong_setting_is_one_message_before_anything_starts(
    words: list[str], world_size: int, message: str
) -> None:
    result = start(words, rank=0, world_size=world_size)

    assert result.returncode != 0
    assert message in result.stderr
    assert "Traceback" not in result.stderr


def test_only_the_leader_speaks() -> None:
    result = start(["data.token_shards=nowhere"], rank=1, world_size=2)

    assert (result.returncode, result.stderr) == (2, "")


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("data.token_shards=nowhere", "nowhere is not a folder"),
        ("data.token_shards", "data.token_shards has no value"),
    ],
    ids=["ours", "Hydra's"],
)
def test_any_refused_rank_leaves_its_message_for_the_batch_script(
    tmp_path: Path, word: str, message: str
) -> None:
    ending = tmp_path / "ending.txt"

    result = start([word], rank=1, world_size=2, ENDING_FILE=str(ending))

    assert result.returncode == 2
    code, _, said = ending.read_text().partition("\n")
    assert code == "2"
    assert message in said


def folders_that_exist(folder: Path) -> list[str]:
    """Return settings that name empty folders."""
    names = ("data.token_shards", "data.text_tokenizer", "data.image_tokenizer", "samples.pairs")
    for name in names:
        (folder / name).mkdir()
    return [f"{name}={folder / name}" for name in names]


def test_a_second_run_of_a_folder_is_one_message_before_anything_starts(tmp_path: Path) -> None:
    """The refusal takes less than 10 s, and the first run continues."""
    run_dir = tmp_path / "run"
    with RunLock(run_dir, Launch(rank=0, local_rank=0, world_size=1)) as first:
        result = start([f"run_dir={run_dir}", *folders_that_exist(tmp_path)], rank=0, world_size=1)

        assert result.returncode == 2
        assert f"pretrain: run_dir={run_dir} is in use by process {os.getpid()}" in result.stderr
        assert "Traceback" not in result.stderr
        assert not first.is_lost


def test_a_run_folder_that_cannot_be_written_is_one_message(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")

    result = start(
        [f"run_dir={tmp_path}/file/run", *folders_that_exist(tmp_path)], rank=0, world_size=1
    )

    assert result.returncode == 2
    assert f"pretrain: run_dir={tmp_path}/file/run cannot be written" in result.stderr


def test_ranks_that_do_not_meet_are_no_wrong_setting(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The same command may succeed later, so the exit code must allow a restart."""

    @program("caption", CaptionConfig, has_ranks=True)
    def main(config: CaptionConfig) -> None:
        raise RendezvousError("rank 1 does not reach rank 0")

    monkeypatch.setattr(sys, "argv", ["caption", "weights=a", "images=b", "output=c"])
    for name, value in {"RANK": "8", "LOCAL_RANK": "0", "WORLD_SIZE": "16"}.items():
        monkeypatch.setenv(name, value)

    with pytest.raises(SystemExit) as ended:
        main()

    assert ended.value.code == 1
    assert capsys.readouterr().err == "caption: rank 1 does not reach rank 0\n"


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        pytest.param(InputError("weights=a: no"), 2, "caption: weights=a: no\n", id="an input"),
        pytest.param(ValueError("math domain error"), 1, "Traceback", id="a fault of a library"),
    ],
)
def test_only_what_a_person_can_mend_ends_with_code_2(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    error: Exception,
    code: int,
    said: str,
) -> None:
    """After code 2 neither supervise nor a batch script tries again."""

    @program("caption", CaptionConfig)
    def main(config: CaptionConfig) -> None:
        raise error

    monkeypatch.setattr(sys, "argv", ["caption", "weights=a", "images=b", "output=c"])

    with pytest.raises(SystemExit) as ended:
        main()

    assert ended.value.code == code
    assert capsys.readouterr().err.startswith(said)


MIXTURE = "+data.mixture={cc:{token_shards:a,weight:2},wukong:{token_shards:b,weight:1}}"


def data_of(*words: str) -> PretrainDataConfig:
    config = compose_program("pretrain", ["experiment=quickstart", *words])
    data: PretrainDataConfig = config.data
    return data


def test_a_dict_of_settings_on_the_command_line_becomes_dataclasses() -> None:
    data = data_of(
        "data.token_shards=null",
        MIXTURE,
        "data.mixture.cc.weight=5",
        "data.mixture_changes=[{step:9,weights:{cc:1,wukong:0}}]",
        "data.loader.num_workers=3",
    )

    assert data.mixture == {
        "cc": MixtureDataSetConfig(token_shards="a", weight=5.0),
        "wukong": MixtureDataSetConfig(token_shards="b", weight=1.0),
    }
    assert data.mixture_changes == (
        MixtureChangeConfig(step=9, weights={"cc": 1.0, "wukong": 0.0}),
    )
    assert data.loader.num_workers == 3


def test_a_dict_of_settings_in_a_file_can_be_changed_by_key(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "mixed.yaml").write_text(
        """
mixture:
  cc: {token_shards: a, weight: 2}
  wukong: {token_shards: b, weight: 1}
mixture_changes:
  - {step: 9, weights: {wukong: 3}}
"""
    )

    data = data_of(
        f"hydra.searchpath=[file://{tmp_path}]",
        "data=mixed",
        "data.token_shards=null",
        "~data.mixture.cc",
        "data.mixture.wukong.weight=4",
    )

    assert data.mixture == {"wukong": MixtureDataSetConfig(token_shards="b", weight=4.0)}
    assert data.mixture_changes == (MixtureChangeConfig(step=9, weights={"wukong": 3.0}),)


def test_a_dict_of_settings_travels_to_other_processes_and_to_json() -> None:
    data = data_of("data.token_shards=null", MIXTURE)

    assert pickle.loads(pickle.dumps(data)) == data
    assert asdict(data)["mixture"] == {
        "cc": {"token_shards": "a", "weight": 2.0},
        "wukong": {"token_shards": "b", "weight": 1.0},
    }


def curation_of(*options: str) -> CurationConfig:
    given = ["source=raw", "output_dir=shards", "image_size=64", *options]
    config: BuildShardsConfig = compose_program("build_shards", given)
    return config.curation


def test_one_key_of_a_new_entry_makes_the_entry() -> None:
    curation = curation_of(
        "curation.rules.default.max_words=20",
        "curation.rules.default.languages=[zh,en]",
        "curation.rules.books.min_nouns=2",
        "curation.rules.empty={}",
    )

    assert curation.rules == {
        "default": Rules(max_words=20, languages=("zh", "en")),
        "books": Rules(min_nouns=2),
        "empty": Rules(),
    }


def test_one_key_of_an_entry_in_a_file_keeps_its_others() -> None:
    preset = curation_of("curation=ernie_vilg", "rules=search")

    changed = curation_of(
        "curation=ernie_vilg",
        "rules=search",
        "curation.rules.search.max_characters=32",
        "curation.rules.search.min_side=null",
        "curation.deduplication.near_pictures=20",
    )

    search = replace(preset.rules["search"], max_characters=32, min_side=None)
    assert changed.rules == {**preset.rules, "search": search}
    assert changed.deduplication == replace(preset.deduplication, near_pictures=20)


def test_texts_in_new_entries_are_what_was_typed() -> None:
    typed = [
        "a,b",
        "a b",
        "x[1]",
        "{a",
        "it's",
        'say "a"',
        "a}b",
        "a:b",
        "红",
        "1e-4",
        "\\",
        "${a}",
    ]
    options = [f"sources.s{n}.image_key={text}" for n, text in enumerate(typed)]
    options += [f"sources.s{n}.location=raw" for n in range(len(typed))]

    config: BuildShardsConfig = compose_program(
        "build_shards", ["output_dir=shards", "image_size=64", *options]
    )

    assert [source.image_key for source in config.sources.values()] == typed


def test_a_misspelt_rule_is_refused_with_the_names_of_all(tmp_path: Path) -> None:
    (tmp_path / "curation").mkdir()
    (tmp_path / "curation" / "own.yaml").write_text("rules: {default: {maxwords: 20}}")

    for options in (
        ["curation.rules.default.maxwords=20"],
        ["curation.rules={default:{maxwords:20}}"],
        [f"hydra.searchpath=[{tmp_path}]", "curation=own"],
    ):
        with pytest.raises(InputError, match=r"'maxwords' not in 'Rules'.*it has .*, max_words, "):
            curation_of(*options)


def test_own_rules_are_a_file_in_a_folder_on_the_search_path(tmp_path: Path) -> None:
    (tmp_path / "curation").mkdir()
    (tmp_path / "curation" / "own.yaml").write_text("rules: {default: {max_words: 20}}")

    curation = curation_of(f"hydra.searchpath=[{tmp_path}]", "curation=own")

    assert curation.rules == {"default": Rules(max_words=20)}


_PROGRAM = """
import sys
from ernie_vilg.config.text_tokenizer import TrainTextTokenizerConfig
from launch.support.program import program

@program("train_text_tokenizer", TrainTextTokenizerConfig)
def main(config):
    raise {error}

sys.argv[1:] = ["shards=a", "output_dir=b", "vocab_size=300"]
main()
"""


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        pytest.param(
            "KeyboardInterrupt", -2, r"^train_text_tokenizer: interrupted\n$", id="Ctrl-C"
        ),
        pytest.param(
            "OSError(28, 'No space left', 'b/x')",
            1,
            r"No space left: 'b/x': free space, and type the same command again\n$",
            id="full disk",
        ),
    ],
)
def test_what_stops_a_program_from_outside_is_said_in_a_line(
    error: str, code: int, message: str
) -> None:
    run = subprocess.run(
        [sys.executable, "-c", _PROGRAM.format(error=error)],
        cwd=ROOT,
        env={"PATH": "", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )

    assert run.returncode == code
    assert re.search(message, run.stderr)
