"""Tasks on a Ray of two nodes, both on this machine, and what is lost while they work."""

import itertools
import json
import logging
import os
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
from PIL import Image

from data_pipelines import ray_executor
from data_pipelines.building.build import build_image_shards
from data_pipelines.executor import Executor
from ernie_vilg.config.shards import BuildShardsConfig
from ernie_vilg.errors import InputError
from tests.data_pipelines.ray_nodes import RayNodes, content_of, ray_nodes

_WAIT_SECONDS = 60.0


@pytest.fixture(scope="module")
def nodes() -> Iterator[RayNodes]:
    with ray_nodes() as nodes:
        yield nodes


@pytest.fixture
def executor(nodes: RayNodes, tmp_path: Path) -> Executor:
    return Executor(kind="ray", num_workers=2, ray_address=nodes.address, shared_folder=tmp_path)


def wait_until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + _WAIT_SECONDS
    while not condition():
        assert time.monotonic() < end, "it never became true"
        time.sleep(0.02)


def square(number: int) -> int:
    return number * number


def square_the_first_after_the_second(task: tuple[Path, int]) -> int:
    folder, number = task
    if number == 0:
        wait_until((folder / "1").exists)
    (folder / str(number)).touch()
    return number * number


def test_results_come_in_the_order_of_the_tasks(executor: Executor, tmp_path: Path) -> None:
    tasks = [(tmp_path, number) for number in range(6)]

    results = executor.map_in_order(square_the_first_after_the_second, tasks)

    assert list(results) == [0, 1, 4, 9, 16, 25]


def test_two_tasks_per_worker_are_taken_before_their_results(executor: Executor) -> None:
    taken = 0

    def tasks() -> Iterator[int]:
        nonlocal taken
        while taken < 40:
            taken += 1
            yield taken

    ahead = [taken - received for received, _ in enumerate(executor.map_in_order(square, tasks()))]

    # The next one is in hand, for the worker that is free first.
    assert 2 <= max(ahead) <= 2 * 2 + 1


def span(_: int) -> tuple[float, float]:
    start = time.monotonic()
    time.sleep(0.02)
    return start, time.monotonic()


def test_one_worker_runs_one_task_at_a_time_on_a_larger_cluster(nodes: RayNodes) -> None:
    executor = Executor(kind="ray", num_workers=1, ray_address=nodes.address)

    spans = list(executor.map_in_order(span, range(6)))

    assert all(end <= start for (_, end), (start, _) in itertools.pairwise(spans))


def refuse_three(number: int) -> int:
    if number == 3:
        raise InputError("row 3: no caption")
    if number == 4:
        raise KeyError("size")
    return number


def test_an_input_error_of_a_task_is_raised_as_it_is(executor: Executor) -> None:
    with pytest.raises(InputError) as caught:
        list(executor.map_in_order(refuse_three, range(5)))

    assert type(caught.value) is InputError
    assert str(caught.value) == "row 3: no caption"
    assert not hasattr(caught.value, "__notes__")


def test_a_fault_of_a_task_keeps_its_type_and_says_where_it_was(executor: Executor) -> None:
    with pytest.raises(KeyError) as caught:
        list(executor.map_in_order(refuse_three, [4]))

    assert "in refuse_three" in caught.value.__notes__[0]


_started: list[str] = []


def start_process(word: str, folder: Path) -> None:
    _started.append(word)
    with (folder / f"{os.getpid()}").open("a", encoding="utf-8") as file:
        file.write(f"{word}\n")


def words_of_this_process(_: int) -> tuple[int, list[str]]:
    return os.getpid(), _started


def test_every_process_is_initialized_once_for_each_list(
    executor: Executor, tmp_path: Path
) -> None:
    runs = [
        list(
            executor.map_in_order(
                words_of_this_process,
                range(8),
                initializer=start_process,
                initializer_arguments=(word, tmp_path),
            )
        )
        for word in ("first", "second")
    ]

    ids = {process_id for run in runs for process_id, _ in run}
    assert {int(path.name) for path in tmp_path.iterdir()} == ids
    assert all(words[-1] == "second" for _, words in runs[1])
    lines = [path.read_text().splitlines() for path in tmp_path.iterdir()]
    assert all(len(set(words)) == len(words) for words in lines)


def warn(number: int) -> int:
    logging.getLogger("data_pipelines.test").warning("row %d is small", number)
    return number


def test_warnings_of_tasks_are_in_the_programs_log_in_order(
    executor: Executor, caplog: pytest.LogCaptureFixture
) -> None:
    list(executor.map_in_order(warn, range(4)))

    assert [record.getMessage() for record in caplog.records] == [
        f"row {number} is small" for number in range(4)
    ]


def square_after_the_first_worker_died(task: tuple[Path, int]) -> int:
    folder, number = task
    if number == 2 and not (folder / "died").exists():
        (folder / "died").touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return number * number


def test_a_task_whose_worker_was_killed_runs_again(executor: Executor, tmp_path: Path) -> None:
    tasks = [(tmp_path, number) for number in range(5)]

    results = list(executor.map_in_order(square_after_the_first_worker_died, tasks))

    assert (tmp_path / "died").exists()
    assert results == [0, 1, 4, 9, 16]


def end_the_process(word: str) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_task_that_ends_every_worker_is_named(
    executor: Executor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray_executor, "_MOST_LOSSES", 1)

    with pytest.raises(InputError, match=r"lost a task again and again.*task part 7"):
        list(executor.map_in_order(end_the_process, ["part 7"]))


def square_unless_on_the_lost_node(task: tuple[Path, str, int]) -> int:
    folder, lost, number = task
    import ray

    if ray.get_runtime_context().get_node_id() == lost:
        (folder / "started").touch()
        time.sleep(_WAIT_SECONDS)  # it is killed in this
    wait_until((folder / "started").exists)
    return number * number


def test_tasks_of_a_lost_node_run_again_on_another(nodes: RayNodes, tmp_path: Path) -> None:
    lost = nodes.add()
    executor = Executor(kind="ray", num_workers=3, ray_address=nodes.address)
    tasks = [(tmp_path, lost.node_id, number) for number in range(8)]

    start = time.monotonic()

    def kill_when_it_works() -> None:
        wait_until((tmp_path / "started").exists)
        nodes.kill(lost)

    killer = threading.Thread(target=kill_when_it_works)
    killer.start()
    results = list(executor.map_in_order(square_unless_on_the_lost_node, tasks))
    killer.join()

    assert results == [number * number for number in range(8)]
    assert time.monotonic() - start < _WAIT_SECONDS


def test_a_node_that_does_not_see_the_folder_is_refused(
    executor: Executor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray_executor, "write_bytes", lambda path, content: None)

    with pytest.raises(InputError, match=f"does not see {tmp_path}: name an output_dir"):
        list(executor.map_in_order(square, [1]))


def test_nothing_stays_in_the_shared_folder(executor: Executor, tmp_path: Path) -> None:
    (tmp_path / ".seen-by-all-nodes-12345678").touch()  # of a program that was killed

    list(executor.map_in_order(square, [1]))

    assert not list(tmp_path.iterdir())


def test_a_node_with_other_packages_is_refused(
    executor: Executor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray_executor, "software", lambda: {"pillow": "1.0"})

    with pytest.raises(InputError, match=r"differs from the program's: pillow .* instead of 1\.0"):
        list(executor.map_in_order(square, [1]))


def work_until_killed(folder: Path) -> None:
    (folder / "working").write_text(str(os.getpid()))
    time.sleep(2 * _WAIT_SECONDS)


_DRIVER = """
import sys
from pathlib import Path
from data_pipelines.executor import Executor
from tests.data_pipelines.test_ray_executor import work_until_killed

folder = Path(sys.argv[1])
executor = Executor(
    kind="ray",
    num_workers=1,
    ray_address=sys.argv[2] or None,
    shared_folder=folder,
    ray_dashboard=False,
)
list(executor.map_in_order(work_until_killed, [folder, folder]))
"""


def start_driver(
    folder: Path, address: str, environment: Mapping[str, str]
) -> "subprocess.Popen[bytes]":
    """Start a program that maps a task, and wait until the task works."""
    driver = subprocess.Popen([sys.executable, "-c", _DRIVER, folder, address], env=environment)
    wait_until(lambda: (folder / "working").exists() and (folder / "working").read_text() != "")
    return driver


def test_tasks_end_when_their_program_is_killed(
    nodes: RayNodes, executor: Executor, tmp_path: Path
) -> None:
    driver = start_driver(tmp_path, nodes.address, os.environ)
    worker = int((tmp_path / "working").read_text())

    driver.kill()
    driver.wait()

    wait_until(lambda: not psutil.pid_exists(worker))
    assert list(executor.map_in_order(square, [3])) == [9]


def test_a_ray_of_this_machine_is_closed_to_others_and_ends_with_its_program(
    tmp_path: Path,
) -> None:
    folder = tempfile.mkdtemp(prefix="ray-", dir="/tmp")
    plain = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    driver = start_driver(tmp_path, "", plain | {"HOME": str(tmp_path), "RAY_TMPDIR": folder})
    family = psutil.Process(driver.pid).children(recursive=True)
    worker = psutil.Process(int((tmp_path / "working").read_text()))
    try:
        ports = [port for process in family for port in process.net_connections("inet")]
        addresses = {port.laddr.ip for port in ports if port.status == psutil.CONN_LISTEN}
        driver.kill()
        driver.wait()
        wait_until(lambda: not worker.is_running())
    finally:
        for process in family:  # Ray's agents end by themselves, after half a minute
            with suppress(psutil.NoSuchProcess):
                process.kill()
        shutil.rmtree(folder, ignore_errors=True)

    assert worker in family
    assert {address.removeprefix("::ffff:") for address in addresses} == {"127.0.0.1"}
    assert stat.S_IMODE((tmp_path / ".ray" / "auth_token").stat().st_mode) == 0o600


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("127.0.0.1:1", "no cluster that this program can join .*Connection refused"),
        ("login7", "it must be auto or host:port"),
        ("ray://127.0.0.1:10001", "start the program on a node of the cluster"),
    ],
    ids=["nobody listens", "no port", "from outside"],
)
def test_an_address_without_a_cluster_is_refused_at_once(
    address: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ray.is_initialized", lambda: False)

    with pytest.raises(InputError, match=message):
        list(Executor(kind="ray", ray_address=address).map_in_order(square, [1]))


def test_without_the_package_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)

    with pytest.raises(InputError, match=r"pip install 'ernie-vilg\[ray\]'"):
        list(Executor(kind="ray").map_in_order(square, [1]))


def write_pairs(folder: Path) -> None:
    """Write twelve grey pictures, two of them equal, and a line that is rejected."""
    folder.mkdir()
    lines = [{"image": f"{number}.png", "caption": f"第{number}张"} for number in range(13)]
    for number in range(12):
        Image.new("L", (8, 8), max(1, number)).save(folder / f"{number}.png")
    text = "".join(f"{json.dumps(line)}\n" for line in lines)
    (folder / "captions.jsonl").write_text(text, encoding="utf-8")


def test_shards_are_those_of_processes(nodes: RayNodes, tmp_path: Path) -> None:
    write_pairs(tmp_path / "pairs")
    settings: dict[str, Any] = {
        "source": str(tmp_path / "pairs"),
        "image_size": 4,
        "samples_per_shard": 5,
        "rows_per_part": 3,
        "max_faulty_fraction": 0.2,
        "ray_address": nodes.address,
    }
    for name, executor, num_workers in (
        ("processes", "processes", 1),
        ("one", "ray", 1),
        ("two", "ray", 2),
    ):
        build_image_shards(
            BuildShardsConfig(
                output_dir=str(tmp_path / name),
                executor=executor,
                num_workers=num_workers,
                **settings,
            )
        )

    wanted = content_of(tmp_path / "processes")
    assert "images-00002.tar" in wanted
    assert content_of(tmp_path / "one") == wanted
    assert content_of(tmp_path / "two") == wanted
