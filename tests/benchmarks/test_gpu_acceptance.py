"""The acceptance run orders, limits, resumes and judges its stages; a rehearsal runs them all."""

import os
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from benchmarks.gpu_acceptance import SECONDS_OF_A_HALF
from benchmarks.gpu_acceptance_parts import inputs, programs
from benchmarks.gpu_acceptance_parts.context import Context, card_preset
from benchmarks.gpu_acceptance_parts.gpu_tests import PARTS, figures_of, words_of
from benchmarks.gpu_acceptance_parts.halves import GOALS, STAGES, Goal
from benchmarks.gpu_acceptance_parts.programs import last_error, run_command
from benchmarks.gpu_acceptance_parts.runner import Runner, to_do
from benchmarks.gpu_acceptance_parts.stages import (
    CutError,
    NotHereError,
    Record,
    Stage,
    StageError,
    Status,
    figure,
)
from benchmarks.gpu_acceptance_parts.state import STATE_NAME, State
from benchmarks.gpu_acceptance_parts.summary import (
    drop_large,
    is_green,
    publish,
    text_of,
    verdict,
)
from benchmarks.support.measurer import Result
from benchmarks.support.results import ROOT
from ernie_vilg.errors import InputError
from ernie_vilg.storage.json_files import read_json
from launch.support.composition import compose_program, program_of

Run = Callable[[Context, float], list[Result]]


def passes(_context: Context, _left: float) -> list[Result]:
    return [figure("speed", 2.0, "m/s")]


def fails(_context: Context, _left: float) -> list[Result]:
    raise StageError("no wind", [figure("speed", 0.0, "m/s")])


def stage(name: str, *, run: Run = passes, half: int = 1, value: int = 1, **rest: object) -> Stage:
    return Stage(**{"name": name, "half": half, "value": value, "seconds": 0, "run": run, **rest})


@pytest.fixture
def context(tmp_path: Path) -> Context:
    return Context(work=tmp_path / "work", results=tmp_path / "out", card="a card", preset=None)


def state_of(context: Context, code: str = "one") -> State:
    return State(context.work / STATE_NAME, code)


def run(context: Context, stages: list[Stage], seconds: float = 60, half: int | None = 1) -> State:
    state = state_of(context)
    runner = Runner(context=context, state=state, seconds=seconds, report=lambda *_: None)
    runner.run(to_do(stages, state, context, half))
    return state


def record_of(state: State, name: str) -> Record:
    record = state.record(name)
    assert record is not None
    return record


def names(stages: list[Stage]) -> list[str]:
    return [each.name for each in stages]


def test_the_most_valuable_stages_come_first(context: Context) -> None:
    stages = [stage("low", value=1), stage("high", value=3), stage("other half", half=2, value=2)]
    state = state_of(context)

    assert names(to_do(stages, state, context, 1)) == ["high", "low"]
    assert names(to_do(stages, state, context, None)) == ["high", "other half", "low"]


def test_the_second_half_takes_up_what_the_first_left(context: Context) -> None:
    ends = {"done": Status.PASSED, "cut": Status.CUT, "late": Status.SKIPPED, "bad": Status.FAILED}
    stages = [*(stage(name) for name in [*ends, "new"]), stage("own", half=2)]
    state = state_of(context)
    for name, status in ends.items():
        state.put(name, Record(status=status))

    assert names(to_do(stages, state, context, 2)) == ["cut", "late", "new", "own"]
    assert names(to_do(stages, state, context, 1)) == ["cut", "late", "bad", "new"]


def test_a_stage_runs_again_where_its_files_are_gone_and_needed(context: Context) -> None:
    stages = [
        stage("train", value=3, leaves=("weights",)),
        stage("apart", value=2, leaves=("picture",)),
        stage("draw", needs=("train",)),
    ]
    state = state_of(context)
    state.put("train", Record(status=Status.PASSED))
    state.put("apart", Record(status=Status.PASSED))

    assert names(to_do(stages, state, context, 1)) == ["train", "draw"]

    (context.work / "weights").mkdir(parents=True)
    assert names(to_do(stages, state, context, 1)) == ["draw"]


def test_a_failed_stage_ends_itself_alone(context: Context) -> None:
    def breaks(_context: Context, _left: float) -> list[Result]:
        raise ValueError("line one\nKeyError: 'x'")

    stages = [
        stage("bad", run=fails, value=5),
        stage("broken", run=breaks, value=4),
        stage("after", needs=("bad",), value=3),
        stage("good"),
    ]

    state = run(context, stages)

    bad, broken, after = (record_of(state, name) for name in ("bad", "broken", "after"))
    assert bad.rows == [figure("speed", 0.0, "m/s")]
    assert (bad.status, bad.reason) == (Status.FAILED, "no wind")
    assert (broken.status, broken.reason) == (Status.FAILED, "KeyError: 'x'")
    assert (after.status, after.reason) == (Status.SKIPPED, "needs: bad")
    assert state.status("good") is Status.PASSED


def test_a_stage_without_time_is_skipped_and_a_shorter_one_runs(context: Context) -> None:
    stages = [stage("long", value=2, seconds=100), stage("short", seconds=5)]

    state = run(context, stages, seconds=30)

    record = record_of(state, "long")
    assert record.status is Status.SKIPPED
    assert record.reason == "takes about 100 s, 30 s are left"
    assert state.status("short") is Status.PASSED


def test_a_stage_that_hangs_does_not_take_all_time(context: Context) -> None:
    limits: list[float] = []

    def note(_context: Context, limit: float) -> list[Result]:
        limits.append(limit)
        return []

    run(context, [stage("one", run=note, seconds=10)], seconds=300)
    context.card = ""
    run(context, [stage("rehearsed", run=note, seconds=10)], seconds=300)

    assert limits[0] == 60
    assert limits[1] > 200


def test_two_stages_share_the_machine_and_one_alone_has_it_to_itself(context: Context) -> None:
    running: list[int] = [0]
    most: dict[str, int] = {}
    lock = threading.Lock()

    def count(name: str) -> Run:
        def stage_function(_context: Context, _left: float) -> list[Result]:
            for change in (1, -1):
                with lock:
                    running[0] += change
                    most[name] = max(most.get(name, 0), running[0])
                time.sleep(0.1)
            return []

        return stage_function

    stages = [stage("first", run=count("alone"), value=9)]
    stages += [stage(str(index), run=count("shared"), is_alone=False) for index in range(4)]
    stages += [stage("last", run=count("alone"), value=0)]

    run(context, stages)

    assert most == {"alone": 1, "shared": 2}


def test_a_stage_waits_for_one_beside_it_that_it_needs(context: Context) -> None:
    ended = threading.Event()

    def slow(_context: Context, _left: float) -> list[Result]:
        time.sleep(0.2)
        ended.set()
        return []

    def needs_slow(_context: Context, _left: float) -> list[Result]:
        assert ended.is_set()
        return []

    stages = [
        stage("slow", run=slow, value=2, is_alone=False),
        stage("next", run=needs_slow, needs=("slow",), is_alone=False),
    ]

    assert run(context, stages).status("next") is Status.PASSED


def test_what_was_cut_is_done_again_and_what_passed_is_not(context: Context) -> None:
    calls: list[str] = []

    def once(name: str, error: BaseException | None = None) -> Run:
        def stage_function(_context: Context, _left: float) -> list[Result]:
            calls.append(name)
            if error is not None and calls.count(name) == 1:
                raise error
            return []

        return stage_function

    stages = [
        stage("green", run=once("green"), value=3),
        stage("late", run=once("late", CutError("not done after 5 s")), value=2),
        stage("killed", run=once("killed", KeyboardInterrupt())),
    ]
    with pytest.raises(KeyboardInterrupt):
        run(context, stages)
    file = read_json(context.work / STATE_NAME)
    assert [file[each.name]["status"] for each in stages] == ["passed", "cut", "cut"]

    state = run(context, stages)

    assert calls == ["green", "late", "killed", "late", "killed"]
    assert {state.status(each.name) for each in stages} == {Status.PASSED}


def test_a_state_file_from_another_machine_is_read_where_there_is_none(tmp_path: Path) -> None:
    carried = State(tmp_path / "carried.json", "one")
    carried.put("train", Record(status=Status.PASSED, rows=[figure("a", 1.0, "s")]))

    state = State(tmp_path / "here.json", "two", carried=tmp_path / "carried.json")

    assert state.passed("train") == [figure("a", 1.0, "s")]


def test_what_did_not_run_is_not_green_but_in_a_rehearsal(context: Context) -> None:
    def not_here(_context: Context, _left: float) -> list[Result]:
        raise NotHereError("needs a compiler")

    stages = [stage("fp8", needs_gpu=True), stage("compiled", run=not_here), stage("plain")]
    context.card = ""

    state = run(context, stages)

    assert [state.status(each.name) for each in stages] == ["not here", "not here", "passed"]
    assert is_green(stages, state, GOALS, has_gpu=False)
    assert not is_green(stages, state, [], has_gpu=True)
    assert not is_green([*stages, stage("unknown")], state, [], has_gpu=False)


@pytest.mark.parametrize(
    ("goal", "green"),
    [
        pytest.param(Goal(metric="speed", bound=2.0, unit="m/s", half=1), True, id="reached"),
        pytest.param(Goal(metric="speed", bound=2.1, unit="m/s", half=1), False, id="missed"),
        pytest.param(Goal(metric="size", bound=1.0, half=1), False, id="not measured"),
        pytest.param(
            Goal(metric="speed", bound=2.0, unit="m/s", is_lower_better=True, half=1),
            False,
            id="not below",
        ),
    ],
)
def test_a_goal_that_is_missed_or_not_measured_is_not_green(
    context: Context, goal: Goal, green: bool
) -> None:
    stages = [stage("one")]

    assert is_green(stages, run(context, stages), [goal], has_gpu=True) == green


def test_the_summary_says_what_passed_what_failed_and_the_ratio_to_each_goal(
    context: Context,
) -> None:
    stages = [stage("good"), stage("bad", run=fails), stage("other", half=2)]
    run(context, stages)
    goals = [
        Goal(metric="speed", bound=1.6, unit="m/s", half=1),
        Goal(metric="share", bound=0.5, half=1),
    ]

    text = text_of(stages, state_of(context, "two"), goals, {"torch": "2.11"}, has_gpu=True)

    assert "| good | 1 | passed | 0 | speed: 2 m/s |" in text
    assert "| bad | 1 | FAILED | 0 | no wind; speed: 0 m/s |" in text
    assert "| other | 2 | not run |  |  |" in text
    assert "2.00 m/s" in text
    assert "reached, 1.25 x" in text
    assert "- share: NOT MEASURED" in text
    assert "1 passed, 1 FAILED, 1 not run." in text
    assert "Failed: bad." in text
    assert "Measured with other code than two: good; bad." in text
    state = state_of(context, "two")
    assert verdict(stages, state, green=True).startswith("ALL GREEN, in part with other code")
    assert verdict(stages[:0], state, green=True) == "ALL GREEN"
    assert verdict(stages, state, green=False) == "NOT GREEN"


def test_at_most_eight_files_go_home_and_none_above_the_limit(
    context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    for index in range(30):
        context.log(f"log {index}").write_text("x")
    run(context, [stage("one")])
    (context.work / "trace.json.gz").write_bytes(b"x" * 5000)

    assert publish(context, "summary") == []
    files = {path.name for path in context.results.iterdir()}
    assert files == {"summary.md", "state.json", "logs.tar.gz", "trace.json.gz"}

    monkeypatch.setattr("benchmarks.gpu_acceptance_parts.summary.MOST_BYTES", 4000)
    assert publish(context, "summary") == ["trace.json.gz"]
    with pytest.raises(AssertionError):
        drop_large(Path(str(index)) for index in range(9))


@pytest.mark.parametrize(
    ("card", "preset"),
    [
        ("NVIDIA H100 80GB HBM3", "h100-80gb"),
        ("NVIDIA H200", "h200-141gb"),
        ("Another card", None),
    ],
)
def test_the_preset_is_that_of_the_card(card: str, preset: str | None) -> None:
    assert card_preset(card) == preset


@pytest.mark.parametrize("card", ["NVIDIA H100 80GB HBM3", "NVIDIA H200", "another", ""])
def test_the_programs_accept_their_commands(
    card: str, context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    context.card, context.preset = card, card_preset(card)
    commands: list[list[str]] = []

    def record(_context: Context, _name: str, command: list[str], _limit: float) -> float:
        commands.append(command)
        return 0.0

    monkeypatch.setattr(programs, "run_program", record)
    held_out = context.work / "quickstart/held_out"
    held_out.mkdir(parents=True)
    (held_out / "captions.jsonl").write_text("{}\n" * 7)
    for stage_function in (programs.train, programs.export, programs.draw, programs.judge):
        with suppress(StageError, FileNotFoundError, InputError):  # nothing has run
            stage_function(context, 60)

    configs = []
    for command in commands:
        found = program_of(command)
        assert found is not None, command
        configs.append(compose_program(*found))

    train, _, _, judge = configs
    assert (train.gpu.name if train.gpu else "another") == (card or "another")
    assert train.training.steps > programs.size_of(context).kill_after + train.checkpoint.every / 2
    assert programs.size_of(context).kill_after > train.checkpoint.every
    assert judge.count == 7


@pytest.mark.parametrize(
    ("words", "command"),
    [
        (["PART=2", "PYTHON=python3.12"], "python3.12 benchmarks/gpu_acceptance.py --part 2"),
        (["GPU=0", "PYTHON=other"], "other benchmarks/gpu_acceptance.py --gpu 0"),
        (["FRESH=1", "PYTHON=other"], "other benchmarks/gpu_acceptance.py --fresh"),
    ],
)
def test_make_needs_no_environment(words: list[str], command: str) -> None:
    done = subprocess.run(
        # Below `make test` make would say which folder it enters.
        ["make", "-n", "--no-print-directory", "gpu-acceptance", *words],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )

    assert " ".join(done.stdout.split()) == command


def test_killing_a_command_kills_what_it_has_started(context: Context) -> None:
    log = context.log("tree")
    script = (
        "import subprocess, sys, time\n"
        "child = subprocess.Popen(['sleep', '600'], start_new_session=True)\n"
        "print(child.pid, flush=True)\n"
        "time.sleep(600)\n"
    )

    code = run_command(
        context, "tree", [sys.executable, "-c", script], 60, is_enough=lambda: bool(log.read_text())
    )

    assert code == 0
    child = int(log.read_text())
    deadline = time.monotonic() + 30
    while psutil.pid_exists(child) and psutil.Process(child).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_command_over_its_limit_is_cut(context: Context) -> None:
    with pytest.raises(CutError, match=r"not done after 0 s: slow\.log"):
        run_command(context, "slow", ["sleep", "600"], 0.1)


def test_a_log_names_its_error(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("started\nValueError: seven\n\nkilling\n")

    assert last_error(log) == "ValueError: seven"


def test_figures_of_pytest() -> None:
    text = "...\nFAILED tests/a.py::b - assert 1\n1 failed, 7 passed, 2 skipped in 3.1s\n"

    (row,) = figures_of("x", "....\n7 passed, 3 deselected in 3.10s\n", 0)
    assert (row["value"], row["unit"]) == (7, "passed")
    with pytest.raises(StageError, match=r"FAILED tests/a\.py::b - assert 1; 1 failed, 7 passed"):
        figures_of("x", text, 1)
    with pytest.raises(StageError, match="2 skipped"):
        figures_of("x", "2 skipped in 1s", 0)
    with pytest.raises(NotHereError, match="needs a GPU: 18 tests are chosen"):
        figures_of("x", "18/50 tests collected (32 deselected) in 2.0s", 0)


def test_every_stage_has_a_name_of_its_own_and_needs_stages_of_higher_value() -> None:
    by_name = {each.name: each for each in STAGES}

    assert len(by_name) == len(STAGES)
    for each in STAGES:
        assert all(by_name[need].value > each.value for need in each.needs), each.name
        assert all(by_name[need].half <= each.half for need in each.needs), each.name


def test_the_required_stages_fit_two_halves() -> None:
    overhead = 25  # wheels, imports, versions
    required = [each for each in STAGES if not each.is_optional]
    alone = sum(each.seconds for each in required if each.is_alone)
    shared = sum(each.seconds for each in required if not each.is_alone)

    assert SECONDS_OF_A_HALF < 360
    assert alone + shared / 2 <= 2 * (SECONDS_OF_A_HALF - overhead)


def test_an_optional_stage_may_be_left_over_but_not_fail(context: Context) -> None:
    late, bad = (
        stage("late", seconds=100, is_optional=True),
        stage("bad", run=fails, is_optional=True),
    )

    state = run(context, [late, stage("good")], seconds=30)

    assert is_green([late, stage("good")], state, [], has_gpu=True)
    assert "Optional, and not run to the end: late." in text_of([late], state, [], {}, has_gpu=True)
    assert not is_green([bad], run(context, [bad]), [], has_gpu=True)


def test_the_parts_of_the_gpu_tests_name_all_files_with_such_tests() -> None:
    named = {word for part in PARTS for word in words_of(part) if word.startswith("tests")}
    mark = "pytest.mark." + "gpu"

    assert named == {
        str(path.relative_to(ROOT))
        for path in (ROOT / "tests").rglob("*.py")
        if mark in path.read_text(encoding="utf-8")
    }
    assert named >= {"tests/model/test_block_sparse.py", "tests/data/batches/test_workers.py"}


def test_wheels_have_the_versions_of_the_constraints() -> None:
    constraints = (ROOT / "constraints.txt").read_text(encoding="utf-8")

    found = inputs.pins([*inputs.PACKAGES, *inputs.SOURCE_PACKAGES], constraints)

    assert set(found) <= set(constraints.splitlines())
    assert len(found) == len(inputs.PACKAGES) + len(inputs.SOURCE_PACKAGES)


def test_carried_wheels_are_installed_once_into_a_folder_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wheels, site = tmp_path / "wheels", tmp_path / "site"
    monkeypatch.setattr(inputs, "WHEELS", wheels)
    inputs.install_wheels(site)
    assert not site.exists()
    wheels.mkdir()
    with zipfile.ZipFile(wheels / "carried-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("carried.py", "VALUE = 1\n")
        about = "carried-1.0.dist-info"
        wheel.writestr(f"{about}/METADATA", "Metadata-Version: 2.1\nName: carried\nVersion: 1.0\n")
        wheel.writestr(f"{about}/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        wheel.writestr(f"{about}/RECORD", "")

    inputs.install_wheels(site)

    assert (site / "carried.py").read_text() == "VALUE = 1\n"
    (site / "carried.py").unlink()
    inputs.install_wheels(site)
    assert not (site / "carried.py").exists()


def test_inputs_survive_the_archive(tmp_path: Path) -> None:
    for part in inputs.PARTS:
        (tmp_path / "job" / part).mkdir(parents=True)
        (tmp_path / "job" / part / "file").write_text(part)
    (tmp_path / "job/image_tokenizer/checkpoint").write_text("large")

    inputs.pack(tmp_path / "job", tmp_path / "carried/quickstart.tar.gz")
    inputs.unpack(tmp_path / "carried/quickstart.tar.gz", tmp_path / "there")

    files = {str(path.relative_to(tmp_path / "there")) for path in (tmp_path / "there").rglob("*")}
    assert {f"{part}/file" for part in inputs.PARTS} <= files
    assert "image_tokenizer/checkpoint" not in files


def test_a_machine_without_a_gpu_is_sent_to_the_rehearsal(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "benchmarks/gpu_acceptance.py", "--part", "1"],
        cwd=ROOT,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": "", "OUT": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 2, done.stdout + done.stderr
    assert "GPU=0 rehearses" in done.stderr
    assert done.stdout.startswith("GPU acceptance, part 1: Python ")


@pytest.mark.slow
@pytest.mark.distributed
@pytest.mark.timeout(900)
def test_a_rehearsal_runs_every_stage_of_both_halves(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "benchmarks/gpu_acceptance.py", "--gpu", "0", "--seconds", "800"],
        cwd=ROOT,
        env={**os.environ, "OUT": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stdout + done.stderr
    assert "ALL GREEN" in done.stdout
    ends = {name: record["status"] for name, record in read_json(tmp_path / STATE_NAME).items()}
    assert set(ends) == {each.name for each in STAGES}
    assert set(ends.values()) == {"passed", "not here"}
    assert len(list(tmp_path.iterdir())) <= 8
