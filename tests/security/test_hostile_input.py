"""Row 52: what comes from outside is data. No file and no setting makes a program run a command.

Every case tries to create the same file, the canary; the first test shows that it would be there if
the attempt reached a shell or an unpickler.
"""

import ast
import io
import json
import os
import pickle
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
import webdataset

from ernie_vilg.data.batches import Share, TokenBatches
from ernie_vilg.data.images import ImageReader
from ernie_vilg.data.reader import read_shard
from ernie_vilg.manifest import (
    FILE_NAME,
    Manifest,
    describe_shard,
    read_manifest,
    read_manifest_at,
    write_manifest,
)
from ernie_vilg.model.weights import load_weights, save_weights
from ernie_vilg.training.commit import MANIFEST_NAME, checkpoint_path, describe_files
from ernie_vilg.training.commit import write_manifest as write_checkpoint_manifest
from ernie_vilg.training.run_folder import read_settings, write_run
from launch.composition import compose_program
from launch.program import CONF_FOLDER
from tests.data.image_shards import images_of, write_image_shards
from tests.data.shards import MEMBERS, MODEL, npy, sequence_of, write_token_shards
from tests.model.tiny import CONFIG, tiny_model
from tests.training.checkpoint_runs import IDENTITY, FakeEngine, checkpoints_of, saved_run
from tests.training.runs import tiny_run

ROOT = CONF_FOLDER.parent
WEIGHTS = "state/weights_0.pt"


class Payload:
    """Runs a command when it is unpickled."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (self.command,)


class Canary:
    """A file that a hostile input would create."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.command = f"touch {path}"

    @property
    def is_there(self) -> bool:
        return self._path.exists()

    def pickled(self) -> bytes:
        return pickle.dumps(Payload(self.command))

    def saved_by_torch(self) -> bytes:
        buffer = io.BytesIO()
        torch.save({"weights": Payload(self.command)}, buffer)
        return buffer.getvalue()

    def in_an_array(self) -> bytes:
        """Return an .npy file of one Python object."""
        return npy(np.array([[Payload(self.command)]], dtype=object))


@pytest.fixture
def canary(tmp_path: Path) -> Iterator[Canary]:
    canary = Canary(tmp_path / "canary")
    yield canary
    assert not canary.is_there


@pytest.mark.parametrize(
    "attempt",
    [
        pytest.param(lambda canary: os.system(canary.command), id="a shell"),
        pytest.param(lambda canary: pickle.loads(canary.pickled()), id="pickle"),
        pytest.param(
            lambda canary: torch.load(io.BytesIO(canary.saved_by_torch()), weights_only=False),
            id="torch",
        ),
        pytest.param(
            lambda canary: np.load(io.BytesIO(canary.in_an_array()), allow_pickle=True), id="numpy"
        ),
    ],
)
def test_the_payloads_work_where_they_are_let(
    tmp_path: Path, attempt: Callable[[Canary], Any]
) -> None:
    canary = Canary(tmp_path / "canary")

    attempt(canary)

    assert canary.is_there


# Commands in place of data.


@pytest.mark.parametrize("form", ["pipe:{}", "pipe: {} |", "file://x;{}", "http://x/`{}`"])
@pytest.mark.parametrize("setting", ["token_shards", "mixture"])
def test_a_command_is_no_location(canary: Canary, form: str, setting: str) -> None:
    location = form.format(canary.command)
    words = {
        "token_shards": [f"data.token_shards='{location}'"],
        "mixture": [
            "data.token_shards=null",
            f"+data.mixture={{a:{{token_shards:'{location}',weight:1}}}}",
        ],
    }

    with pytest.raises(ValueError, match="location that begins with") as caught:
        compose_program("pretrain", ["experiment=quickstart", *words[setting]])

    assert canary.command not in str(caught.value.__cause__)  # it may hold a password
    with pytest.raises(ValueError, match="location that begins with"):
        read_manifest_at(location, "token")


@pytest.mark.parametrize(
    "name", ["pipe:{}", "a.tar|{}", "$({})", "../../{}", "{}\n"], ids=lambda name: repr(name)
)
def test_a_command_is_no_shard(tmp_path: Path, canary: Canary, name: str) -> None:
    write_token_shards(tmp_path / "shards", [3])
    path = tmp_path / "shards" / FILE_NAME
    content = json.loads(path.read_text())
    content["shards"][0]["file"] = name.format(canary.command)
    path.write_text(json.dumps(content))

    with pytest.raises(ValueError, match="which is no plain file name"):
        read_manifest(tmp_path / "shards", "token")


# Names of functions in place of settings.

TARGETS = ["os.system", "logging.os.system", "builtins.eval"]


@pytest.mark.parametrize("target", TARGETS[:2])
@pytest.mark.parametrize("group", ["", "optimizer."], ids=["top", "group"])
def test_a_target_on_the_command_line_is_an_unknown_key(
    canary: Canary, group: str, target: str
) -> None:
    words = [f"+{group}_target_={target}", f"+{group}command='{canary.command}'"]

    with pytest.raises(ValueError, match="refuses these settings") as caught:
        compose_program("pretrain", ["experiment=quickstart", *words])

    said = caught.value.__cause__
    assert "Key '" in f"{said} {said.__cause__ if said else None}"


@pytest.mark.parametrize("target", TARGETS)
def test_a_target_in_a_configuration_file_is_an_unknown_key(
    tmp_path: Path, canary: Canary, target: str
) -> None:
    (tmp_path / "optimizer").mkdir()
    (tmp_path / "optimizer" / "fast.yaml").write_text(
        f"_target_: {target}\ncommand: {canary.command}\nlearning_rate: 1.0\n"
    )

    with pytest.raises(ValueError, match="refuses these settings"):
        compose_program(
            "pretrain",
            ["experiment=quickstart", f"hydra.searchpath=[file://{tmp_path}]", "optimizer=fast"],
        )


def test_a_callback_of_hydra_itself_runs_no_command(canary: Canary) -> None:
    """Its targets are called before our checks; Hydra 1.3.8 refuses commands, aliases included."""
    callback = "+hydra.callbacks.a._target_=logging.os.system"
    done = subprocess.run(
        [
            *(sys.executable, "launch/pretrain.py", "experiment=quickstart", "dry_run=true"),
            *(callback, f"+hydra.callbacks.a.command='{canary.command}'"),
        ],
        cwd=ROOT,
        env={"PATH": os.environ["PATH"]},
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode != 0
    assert "hydra.callbacks.a" in done.stderr


def test_a_target_in_a_recorded_run_is_an_unknown_setting(tmp_path: Path, canary: Canary) -> None:
    config = tiny_run(tmp_path, steps=1)
    write_run(config)
    path = Path(config.run_dir) / "run.json"
    content = json.loads(path.read_text())
    content["settings"]["model"] |= {"_target_": "os.system", "command": canary.command}
    path.write_text(json.dumps(content))

    with pytest.raises(ValueError, match="ModelConfig has no _target_"):
        read_settings(Path(config.run_dir))


# Pickles in place of samples.


def token_shards_with(folder: Path, **members: bytes) -> Manifest:
    """Write a shard of one sample, some members of which are replaced, with the right hash."""
    folder.mkdir()
    sample = {
        "codes.npy": npy(np.zeros((2, 2), np.uint16)),
        "text.npy": npy(np.array([5], np.int32)),
        "json": b"{}",
    }
    with webdataset.TarWriter(str(folder / "a.tar")) as writer:
        writer.write({"__key__": "0", **sample, **members})
    shard = describe_shard(folder / "a.tar", samples=1, members=MEMBERS)
    manifest = Manifest(kind="token", shards=(shard,), settings={"grid_size": 2}, lineage={})
    write_manifest(folder, manifest)
    return manifest


@pytest.mark.parametrize("extension", ["pkl", "pickle", "pt", "pth", "pyd"])
def test_a_pickle_beside_the_members_of_a_sample_is_refused(
    tmp_path: Path, canary: Canary, extension: str
) -> None:
    manifest = token_shards_with(tmp_path / "shards")
    with tarfile.open(tmp_path / "shards" / "a.tar", "a") as archive:
        member = tarfile.TarInfo(f"0.{extension}")
        content = canary.pickled()
        member.size = len(content)
        archive.addfile(member, io.BytesIO(content))
    shard = describe_shard(tmp_path / "shards" / "a.tar", samples=1, members=MEMBERS)

    with pytest.raises(ValueError, match="has members"):
        read_shard(tmp_path / "shards", shard)
    assert manifest.shards[0] != shard


def test_a_manifest_that_asks_for_a_pickle_is_refused(tmp_path: Path, canary: Canary) -> None:
    token_shards_with(tmp_path / "shards")
    path = tmp_path / "shards" / FILE_NAME
    content = json.loads(path.read_text())
    content["shards"][0]["members"].append("pkl")
    path.write_text(json.dumps(content))

    with pytest.raises(ValueError, match="members of extension 'pkl'"):
        read_manifest(tmp_path / "shards", "token")


@pytest.mark.parametrize("member", ["codes.npy", "text.npy"])
@pytest.mark.parametrize("form", ["pickled", "saved_by_torch", "in_an_array"])
def test_a_pickle_under_the_name_of_an_array_is_damage(
    tmp_path: Path, canary: Canary, member: str, form: str
) -> None:
    content: bytes = getattr(canary, form)()
    manifest = token_shards_with(tmp_path / "shards", **{member: content})
    share = Share(global_batch_size=1, data_rank=0, data_size=1)
    sequence = sequence_of(tmp_path / "shards", manifest, MODEL)

    with (
        closing(TokenBatches(sequence, share, micro_batch_size=1)) as batches,
        pytest.raises(ValueError, match="sample"),
    ):
        batches.at(0)


def test_a_pickle_under_the_name_of_a_picture_is_damage(tmp_path: Path, canary: Canary) -> None:
    manifest = write_image_shards(tmp_path / "shards", [[canary.pickled()]], image_size=8)
    images = images_of(tmp_path / "shards", manifest)

    with closing(ImageReader(images)) as reader, pytest.raises(ValueError, match="sample"):
        reader.read(np.arange(1), for_training=False)


# Pickles in place of checkpoints and weights.


@pytest.fixture
def one_process() -> Iterator[None]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


class TrustingEngine(FakeEngine):
    """Unpickles every file of the folder, as DeepSpeed's tools do with those they find."""

    def load(self, folder: Path) -> None:
        for path in sorted(folder.rglob("*.pt")):
            torch.load(path, weights_only=False)
        super().load(folder)


def restored_step(run_dir: Path) -> int:
    engine: Any = TrustingEngine()
    step: int = checkpoints_of(run_dir).restore(engine)
    return step


@pytest.mark.usefixtures("one_process")
@pytest.mark.parametrize("name", [WEIGHTS, "state/planted.pt"], ids=["replaced", "planted"])
def test_a_pickle_in_a_checkpoint_is_never_unpickled(
    tmp_path: Path, canary: Canary, name: str
) -> None:
    run_dir = tmp_path / "run"
    saved_run(run_dir)
    (checkpoint_path(run_dir, 20) / name).write_bytes(canary.saved_by_torch())

    assert restored_step(run_dir) == 10


@pytest.mark.usefixtures("one_process")
def test_a_pickle_and_its_hash_in_an_edited_manifest_are_not_enough(
    tmp_path: Path, canary: Canary
) -> None:
    run_dir = tmp_path / "run"
    saved_run(run_dir)
    folder = checkpoint_path(run_dir, 20)
    (folder / WEIGHTS).write_bytes(canary.saved_by_torch())
    content = json.loads((folder / MANIFEST_NAME).read_text())
    (entry,) = [entry for entry in content["files"] if entry["file"] == WEIGHTS]
    entry.update(describe_files(folder, [folder / WEIGHTS])[0])
    (folder / MANIFEST_NAME).write_text(json.dumps(content, indent=2))

    assert restored_step(run_dir) == 10


@pytest.mark.usefixtures("one_process")
def test_a_whole_checkpoint_of_another_run_is_refused_before_it_is_unpickled(
    tmp_path: Path, canary: Canary
) -> None:
    """Every hash of it holds. One that also copies the run's identity would be believed: who can
    write into a run folder is trusted (docs/health.md).
    """
    run_dir = tmp_path / "run"
    saved_run(run_dir)
    folder = checkpoint_path(run_dir, 20)
    (folder / WEIGHTS).write_bytes(canary.saved_by_torch())
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != MANIFEST_NAME]
    content = json.loads((folder / MANIFEST_NAME).read_text())
    kept = {"step", "identity", "files", "format_version", "sha256"}
    write_checkpoint_manifest(
        folder,
        step=20,
        identity={**IDENTITY, "order": {"seed": 666}},
        files=describe_files(folder, files),
        about={name: value for name, value in content.items() if name not in kept},
    )

    with pytest.raises(ValueError, match="was written by a run with other settings"):
        restored_step(run_dir)


def test_a_pickle_under_the_name_of_exported_weights_is_not_unpickled(
    tmp_path: Path, canary: Canary
) -> None:
    save_weights(tmp_path, CONFIG, tiny_model().state_dict(), about={})
    (tmp_path / "model.safetensors").write_bytes(canary.saved_by_torch())
    with pytest.raises(ValueError, match="differs from the SHA-256"):
        load_weights(tmp_path)

    content = json.loads((tmp_path / "config.json").read_text())
    (described,) = describe_files(tmp_path, [tmp_path / "model.safetensors"])
    content["sha256"] = described["sha256"]
    (tmp_path / "config.json").write_text(json.dumps(content))
    with pytest.raises(Exception, match=r"(?i)safetensor|header"):
        load_weights(tmp_path)


# What no line of the code does.

UNPICKLES_AFTER_CHECKING_HASHES = {
    # DeepSpeed's own files, which hold its classes:
    "ernie_vilg/parallel/universal.py",
    "ernie_vilg/parallel/whole_state.py",
    "launch/drills/runs.py",  # compares the states of its own runs
}
FORBIDDEN_IMPORTS = {"pickle", "marshal", "shelve", "dill", "cloudpickle", "joblib"}
FORBIDDEN_CALLS = {
    *("eval", "exec", "os.system", "os.popen", "subprocess.getoutput"),
    *("yaml.load", "yaml.unsafe_load", "yaml.full_load"),
    *("hydra.utils.instantiate", "instantiate", "hydra.utils.call", "torch.hub.load"),
}


def findings(path: Path) -> Iterator[str]:
    """Yield what in a source file could run what it reads."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import | ast.ImportFrom):
            module = getattr(node, "module", None)
            for name in [module] if module else [alias.name for alias in node.names]:
                if name.partition(".")[0] in FORBIDDEN_IMPORTS:
                    yield f"imports {name}"
        if isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            words = {word.arg: ast.unparse(word.value) for word in node.keywords}
            if name in FORBIDDEN_CALLS:
                yield f"calls {name}"
            if words.get("shell", "False") != "False":
                yield f"calls {name} with a shell"
            if words.get("allow_pickle", "False") != "False":
                yield f"calls {name} with allow_pickle"
            if name == "torch.load" and words.get("weights_only") != "True":
                yield "torch.load without weights_only=True"


def test_no_line_runs_what_it_reads() -> None:
    found = {
        str(path.relative_to(ROOT)): list(findings(path))
        for folder in ("ernie_vilg", "launch", "data_pipelines")
        for path in sorted((ROOT / folder).rglob("*.py"))
    }

    assert len(found) > 100
    unexpected = {
        name: lines
        for name, lines in found.items()
        if lines and name not in UNPICKLES_AFTER_CHECKING_HASHES
    }
    assert unexpected == {}
    for name in UNPICKLES_AFTER_CHECKING_HASHES:
        assert set(found.get(name, [])) <= {"torch.load without weights_only=True"}


def test_the_scan_finds_what_it_looks_for(tmp_path: Path) -> None:
    source = tmp_path / "source.py"
    source.write_text(
        "import pickle\nfrom dill import loads\nos.system('x')\nsubprocess.run('x', shell=True)\n"
        "torch.load(f)\nnp.load(f, allow_pickle=flag)\nyaml.load(f)\n"
    )

    assert len(list(findings(source))) == 7
