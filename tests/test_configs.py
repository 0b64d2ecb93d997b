"""Every YAML in conf/ composes over its schema and passes every check."""

import functools
import json
import re
from pathlib import Path
from typing import Literal

import pytest
import yaml

from data_pipelines.captions import clean_caption
from data_pipelines.shapes_data_set import pair_of
from ernie_vilg.config.shapes import DrawShapesConfig
from ernie_vilg.shapes.scenes import COLOURS, SHAPES
from ernie_vilg.shapes.splits import TRAIN
from ernie_vilg.text_tokenizer import TextTokenizer, train_text_tokenizer
from launch.support.composition import compose_program, settings_of
from launch.support.program import CONF_FOLDER

# Required settings of each program.
REQUIRED_SETTINGS = {
    "audit_shards": ["image_shards=i", "output_dir=o"],
    "build_shards": ["source=s", "output_dir=o", "image_size=64"],
    "caption": ["weights=w", "images=i", "output=o"],
    "doctor": [],
    "draw_shapes": ["output_dir=o"],
    "drill": ["experiment=quickstart"],
    "encode_shards": ["shards=s", "text_tokenizer_dir=t", "image_tokenizer_dir=i", "output_dir=o"],
    "evaluate": ["weights=w", "pairs=p", "output_dir=o"],
    "evaluate_image_tokenizer": ["weights=w", "shards=s", "output_dir=o"],
    "explain_step": ["run=r", "step=1"],
    "export": ["run=r", "output_dir=o"],
    "export_image_tokenizer": ["image_tokenizer_dir=i", "output_file=o"],
    "generate": ["weights=w", "prompts=[a]", "output_dir=o"],
    "hold_out_variants": ["source=s", "output_dir=o"],
    "import_image_tokenizer": ["checkpoint=c", "output_dir=o"],
    "import_text_tokenizer": ["vocabulary=v", "output_dir=o"],
    "main_job": ["job=quickstart"],
    "plan": ["experiment=quickstart", "num_gpus=8", "gpu=h100-80gb"],
    "pretrain": ["experiment=quickstart"],
    "report": [
        "title=t", "pretrain_run=p", "tokenizer_run=i", "evaluation=e", "stages=s", "output=o",
        "command=c",
    ],
    "reshard": ["run=r"],
    "soak": ["experiment=quickstart"],
    "submit": ["experiment=quickstart"],
    "train_image_tokenizer": ["shards=s", "run_dir=r", "image_tokenizer=quickstart"],
    "train_text_tokenizer": ["shards=s", "output_dir=o"],
}  # fmt: skip

FURTHER_SETTINGS = {"curation=ernie_vilg": ["rules=web", "curation.similarity_model=m"]}
"""Settings without which an option of a group is refused."""

PROGRAM_FILES = sorted(CONF_FOLDER.glob("*.yaml"))
GROUP_FILES = sorted(CONF_FOLDER.glob("*/*.yaml"))


def groups_of(program: Path) -> set[str]:
    """Return the config groups in a program's defaults list."""
    defaults = yaml.safe_load(program.read_text(encoding="utf-8"))["defaults"]
    return {key for entry in defaults if isinstance(entry, dict) for key in entry}


def programs_with(group: str) -> list[str]:
    return [program.stem for program in PROGRAM_FILES if group in groups_of(program)]


@pytest.mark.parametrize("path", PROGRAM_FILES, ids=lambda path: path.stem)
def test_program_composes(path: Path) -> None:
    compose_program(path.stem, REQUIRED_SETTINGS[path.stem])


@pytest.mark.parametrize("path", GROUP_FILES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_option_of_a_group_composes_in_every_program_that_offers_it(path: Path) -> None:
    group, option = path.parent.name, path.stem
    programs = programs_with(group)

    assert programs, f"no program offers the group {group}"
    for program in programs:
        words = [word for word in REQUIRED_SETTINGS[program] if not word.startswith(f"{group}=")]
        further = FURTHER_SETTINGS.get(f"{group}={option}", [])
        compose_program(program, [*words, f"{group}={option}", *further])


@pytest.mark.parametrize("path", PROGRAM_FILES, ids=lambda path: path.stem)
def test_program_file_has_its_program_and_the_other_way_round(path: Path) -> None:
    assert (CONF_FOLDER.parent / "launch" / f"{path.stem}.py").is_file()


@pytest.mark.parametrize(
    "path", PROGRAM_FILES + GROUP_FILES, ids=lambda path: str(path.relative_to(CONF_FOLDER))
)
def test_first_line_says_what_it_is_for(path: Path) -> None:
    lines = path.read_text(encoding="utf-8").splitlines()
    comment = lines[1] if lines[0].startswith("# @package") else lines[0]

    assert re.match(r"# .{10,}", comment), comment


@pytest.mark.parametrize(
    "override",
    ["output_dri=o", "count=many", "count=0", "judge=someone"],
    ids=["unknown key", "mistyped value", "value out of range", "unknown choice"],
)
def test_wrong_setting_is_refused(override: str) -> None:
    with pytest.raises(Exception, match=override.split("=")[0]):
        compose_program("evaluate", [*REQUIRED_SETTINGS["evaluate"], override])


@pytest.mark.parametrize("path", sorted(CONF_FOLDER.glob("job/*.yaml")), ids=lambda path: path.stem)
def test_programs_accept_the_settings_of_a_job(path: Path) -> None:
    job = compose_program("main_job", [f"job={path.stem}"]).job

    checked = [settings_of(job.command(stage)) for stage in job.stages]

    assert sum(settings is not None for settings in checked) >= 10


def test_missing_setting_is_named() -> None:
    with pytest.raises(Exception, match="weights"):
        compose_program("evaluate", ["pairs=p", "output_dir=o"])


def test_unknown_program_is_named() -> None:
    with pytest.raises(ValueError, match=r"launch/nothing\.py does not exist"):
        compose_program("nothing", [])


EMOJI = CONF_FOLDER.parent.parent / "shared" / "data" / "noto-emoji" / "captions.jsonl"


VARIETIES_OF_JOBS: dict[str, Literal["moderate", "varied"]] = {
    "quickstart": "moderate",
    "scenes": "varied",
}


@functools.cache
def captions_of(job: str) -> list[str]:
    if job in VARIETIES_OF_JOBS:
        data = DrawShapesConfig(output_dir="o", variety=VARIETIES_OF_JOBS[job])
        return [pair_of(data, TRAIN, index).caption for index in range(6000)]
    if not EMOJI.is_file():
        pytest.skip(f"the emoji data set is not at {EMOJI}")
    lines = EMOJI.read_text(encoding="utf-8").splitlines()
    return [clean_caption(json.loads(line)["caption"], max_characters=1000) for line in lines]


@functools.cache
def text_tokenizer_of(name: str) -> TextTokenizer:
    job = compose_program("main_job", [f"job={name}"]).job
    stage = next(stage for stage in job.stages if stage.name == "train_text_tokenizer")
    settings = compose_program("train_text_tokenizer", list(job.command(stage)[2:]))
    return TextTokenizer(train_text_tokenizer(captions_of(name), settings), "")


@pytest.mark.parametrize("name", VARIETIES_OF_JOBS)
def test_no_piece_of_a_job_ties_a_shape_to_a_colour(name: str) -> None:
    tokenizer = text_tokenizer_of(name)

    ids = {index for caption in captions_of(name) for index in tokenizer.encode(caption)}
    pieces = [tokenizer.decode([index]) for index in ids]

    colours = {character for colour in COLOURS for character in colour} - {"色"}
    shapes = {character for shape in SHAPES for character in shape} - {"形", "角"}
    assert len(pieces) > 30
    assert [piece for piece in pieces if colours & {*piece} and shapes & {*piece}] == []


@pytest.mark.parametrize(("name", "longest"), [("quickstart", 15), ("scenes", 21), ("emoji", 23)])
def test_a_jobs_text_tokenizer_leaves_no_caption_cut(name: str, longest: int) -> None:
    tokenizer = text_tokenizer_of(name)

    assert max(len(tokenizer.encode(caption)) + 1 for caption in captions_of(name)) == longest
    assert compose_program("pretrain", [f"experiment={name}"]).model.text_length >= longest
