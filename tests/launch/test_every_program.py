"""Help, refusals and checks of the environment of every program."""

import dataclasses
import json
import os
import subprocess
import sys
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from ernie_vilg.config.schema import non_null
from launch.support.choices import choices_of, groups_of
from launch.support.composition import compose_program, schema_of
from launch.support.environment import read_launch
from launch.support.help import help_text, settings_of
from launch.support.program import CONF_FOLDER
from tests.test_configs import REQUIRED_SETTINGS as REQUIRED

ROOT = CONF_FOLDER.parent
PROGRAMS = sorted(REQUIRED)


def run(
    program: str, words: list[str], environment: Mapping[str, str]
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, f"launch/{program}.py", *words],
        cwd=ROOT,
        env={"PATH": os.environ["PATH"], **environment},
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize("program", PROGRAMS)
def test_help_lists_every_setting_with_its_docstring(program: str) -> None:
    schema = schema_of(program)
    text = " ".join(help_text(program, schema, "").split())

    for key, _, _, docstring in settings_of(schema):
        assert f" {key}: " in text
        assert docstring, f"{key} has no docstring"
        assert " ".join(docstring.split()) in text


@pytest.mark.parametrize("words", ["--cfg job seed=3", "seed=3 --cfg job", "--cfg=job seed=3"])
def test_cfg_job_may_stand_anywhere(words: str) -> None:
    shown = run("draw_shapes", ["output_dir=unused", *words.split()], {})

    assert shown.returncode == 0, shown.stderr
    assert "\nseed: 3\n" in shown.stdout


_ALL_IN_ONE_PROCESS = """
import contextlib, io, json, pkgutil, runpy, sys
import ernie_vilg.config
for module in pkgutil.iter_modules(ernie_vilg.config.__path__):
    __import__(f"ernie_vilg.config.{module.name}")
results = []
for program, words in json.load(sys.stdin):
    sys.argv = [f"launch/{program}.py", *words]
    out, err, code = io.StringIO(), io.StringIO(), 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            runpy.run_path(sys.argv[0], run_name="__main__")
        except SystemExit as error:
            code = error.code
    results.append([out.getvalue(), err.getvalue(), code or 0, "torch" in sys.modules])
json.dump(results, sys.stdout)
"""
"""Asks every program in one process, in which an import of torch shows from then on."""
QUESTIONS = {
    "help": lambda program: ["--help"],
    "settings": lambda program: [*REQUIRED[program], "--cfg", "job"],
    "refusal": lambda program: [*REQUIRED[program], "nothing=1"],
}


@dataclasses.dataclass(frozen=True)
class Answer:
    out: str
    err: str
    code: int
    has_torch: bool


@pytest.fixture(scope="module")
def answers() -> dict[tuple[str, str], Answer]:
    asked = [(program, question) for program in PROGRAMS for question in QUESTIONS]
    lines = [[program, QUESTIONS[question](program)] for program, question in asked]
    done = subprocess.run(
        [sys.executable, "-c", _ALL_IN_ONE_PROCESS],
        cwd=ROOT,
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT)},
        input=json.dumps(lines),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return dict(zip(asked, (Answer(*each) for each in json.loads(done.stdout)), strict=True))


@pytest.mark.parametrize("program", PROGRAMS)
def test_help_cfg_and_a_refusal_need_no_torch(
    program: str, answers: dict[tuple[str, str], Answer]
) -> None:
    """Seven programs have groups that must be chosen; their help needs no choice."""
    shown, settings, refused = (answers[program, question] for question in QUESTIONS)

    assert (shown.code, shown.err) == (0, "")
    assert f"ernie-vilg {program} KEY=VALUE" in shown.out
    assert f"python launch/{program}.py KEY=VALUE" in shown.out
    assert (settings.code, settings.err) == (0, "")
    fields = [field.name for field in dataclasses.fields(schema_of(program))]
    assert list(yaml.safe_load(settings.out)) == fields
    assert refused.code == 2
    assert (refused.out, refused.err.count("\n")) == ("", 1)
    assert refused.err.startswith(f"{program}: ")
    assert "nothing" in refused.err
    assert not any(answer.has_torch for answer in (shown, settings, refused))


def test_a_short_flag_asks_for_help() -> None:
    assert run("pretrain", ["-h"], {}).stdout == run("pretrain", ["--help"], {}).stdout != ""


@pytest.mark.parametrize("program", PROGRAMS)
def test_help_has_a_sentence_about_every_choice(program: str) -> None:
    text = " ".join(help_text(program, schema_of(program), "").split())

    for group, chosen in groups_of(program).items():
        for choice, sentence in choices_of(group).items():
            assert f" {choice}: {sentence} " in text
            assert not sentence.endswith(":")
            assert "launch/" not in sentence
            assert len(sentence) > 10
        assert chosen in (None, "???") or f"(default {chosen})" in text


def test_help_may_be_cut_short() -> None:
    words = [sys.executable, "launch/pretrain.py", "--help"]
    with subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as shown:
        assert shown.stdout is not None
        assert shown.stderr is not None
        shown.stdout.close()
        assert shown.stderr.read() == b""


def test_help_names_type_range_choices_and_default() -> None:
    text = help_text("generate", schema_of("generate"), "")

    assert (
        "  batch_size: whole number at least 1 = 64\n      Number of pictures drawn at once.\n"
        in text
    )
    assert "  device: auto, cpu, cuda or cuda:INDEX = auto\n" in text
    assert "  temperature: number at least 0, or null = null\n" in text
    assert "  weights: text, required\n" in text
    text = help_text("plan", schema_of("plan"), "")
    assert "  model=base_300m, emoji, ernie_vilg_10b, quickstart, scenes (required)\n" in text


def wrong_words(schema: type) -> list[str]:
    """Return options that are wrong for every schema, and for one field of each type."""
    words = ["nothing=1", "+nothing=1", "~nothing", "nothing", "", "=1", "-x", "a..b=1", "a/b=1"]
    words += ["hydra.run.dir=x", "hydra/launcher=x", "+hydra.callbacks.a=x"]
    inherited = typing.get_type_hints(schema.__base__)  # tested with the base's own program
    seen = []
    for field in dataclasses.fields(schema):
        if field.name in inherited:
            continue
        hint: Any = typing.get_type_hints(schema)[field.name]
        if hint in seen and not dataclasses.is_dataclass(hint):
            continue  # the same code reads every field of a type
        seen.append(hint)
        name, part = field.name, non_null(hint)
        words += [f"~{name}", f"{name}.x.y=1", f"{name}[0]=1", name]
        words += [f"{name}={{a:"] if part is not str else []
        words += [f"{name}=null"] if part is hint else []
        if part in (int, float):
            words += [f"{name}={value}" for value in ("many", "[1]", "{a:1}", "nan", "inf", "${x}")]
        if part is str:
            words += [f"{name}=[a,b]", f"{name}={{a:1}}", f"{name}=???"]
        if part is bool:
            words += [f"{name}=maybe", f"{name}=[true]"]
        if typing.get_origin(part) is typing.Literal:
            words += [f"{name}=someone", f"{name}="]
        if typing.get_origin(part) is tuple:
            words += [f"{name}=a", f"{name}.0=a", f"{name}={{a:1}}"]
        if dataclasses.is_dataclass(part):
            words += [
                f"{name}.x=5",
                f"{name}=5",
                f"{name}=[1]",
                f"{name}={{nothing:1}}",
                f"{name}=someone",
            ]
    return words


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_wrong_option_is_one_sentence(program: str) -> None:
    for word in wrong_words(schema_of(program)):
        with pytest.raises(ValueError, match="it refuses these settings") as caught:
            compose_program(program, [*REQUIRED[program], word])

        said = str(caught.value.__cause__)
        assert said, word
        assert "\n\n" not in said, word


LEFTOVERS = {"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2"}
HAVE_RANKS = {"pretrain", "train_image_tokenizer"}


@pytest.mark.parametrize(
    ("program", "leftovers"),
    [
        *((name, LEFTOVERS) for name in PROGRAMS if name not in HAVE_RANKS),
        pytest.param("export", {"RANK": ""}, id="empty"),
        pytest.param("export", {"RANK": "1"}, id="rank alone"),
    ],
)
def test_a_program_of_one_process_always_logs(program: str, leftovers: dict[str, str]) -> None:
    done = run(program, [*REQUIRED[program], "~nothing"], leftovers)

    assert done.returncode == 2
    assert done.stderr.startswith(f"{program}: ~nothing: a setting cannot be removed")
    assert "Traceback" not in done.stderr


def test_a_refusal_is_printed_with_leftover_variables() -> None:
    words = ["weights=w", "output_dir=o", "prompts_file=nowhere"]
    done = run("generate", words, LEFTOVERS)

    assert done.returncode == 2
    assert "prompts_file=nowhere is not a file" in done.stderr


@pytest.mark.parametrize("program", sorted(HAVE_RANKS))
def test_a_launchers_variable_that_is_missing_is_one_sentence(program: str) -> None:
    done = run(program, REQUIRED[program], {"RANK": "1"})

    assert done.returncode == 2
    assert f"{program}: RANK is set and LOCAL_RANK is not" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"RANK": ""}, "LOCAL_RANK is not|RANK=''"),
        ({"RANK": "1", "LOCAL_RANK": "0"}, "WORLD_SIZE is not: a launcher sets"),
        (LEFTOVERS | {"RANK": "x"}, "RANK='x': must be a whole number"),
        (LEFTOVERS | {"RANK": "-1"}, "RANK='-1': must be a whole number"),
        (LEFTOVERS | {"LOCAL_RANK": "1.5"}, r"LOCAL_RANK='1\.5': must be a whole number"),
        (LEFTOVERS | {"WORLD_SIZE": "²"}, "WORLD_SIZE='²': must be a whole number"),
        (LEFTOVERS | {"RANK": "2"}, "RANK=2, LOCAL_RANK=1, WORLD_SIZE=2: a rank must be below"),
        (LEFTOVERS | {"WORLD_SIZE": "0"}, "a rank must be below the number of ranks"),
        ({"SLURM_RESTART_COUNT": "many"}, "SLURM_RESTART_COUNT='many': must be a whole number"),
    ],
)
def test_a_launchers_variables_are_checked(environment: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_launch(environment)


@pytest.mark.parametrize("name", ["POSIX", "C", "xx_YY"])
def test_texts_are_utf8_in_any_locale(tmp_path: Path, name: str) -> None:
    """Without UTF-8, torch's compiler cannot be imported and no Chinese path can be opened."""
    variables = {"LC_ALL": name, "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    folder = tmp_path / "没有"

    done = run(
        "generate", ["weights=w", f"output_dir={folder}", f"prompts_file={folder}"], variables
    )

    assert done.returncode == 2
    assert done.stderr == (
        f"generate: prompts_file={folder} is not a file: name one with a prompt per line\n"
    )


def test_a_temporary_folder_too_long_for_sockets_is_named(tmp_path: Path) -> None:
    folder = tmp_path / ("a" * 157)
    folder.mkdir()

    done = run("generate", ["weights=w", "output_dir=o", "prompts=[a]"], {"TMPDIR": str(folder)})

    assert done.returncode == 2
    assert f"generate: TMPDIR={folder} has {len(str(folder))} characters" in done.stderr
    assert "AF_UNIX" not in done.stderr
