"""Settings of a main job: its stages and its output folder."""

from dataclasses import dataclass, field, fields
from pathlib import PurePosixPath

from ernie_vilg.config.schema import LocalOutput, Settings
from ernie_vilg.errors import InputError

STAGES_FOLDER = "stages"
LOGS_FOLDER = "logs"


@dataclass(frozen=True, kw_only=True)
class StageConfig:
    """One command of a main job."""

    name: str
    """Name of the stage, of its log and of its state file."""
    command: tuple[str, ...]
    """Command and its arguments, as typed in the repository's root. In another folder
    launch/NAME.py means the installed program. {free_port} becomes a free TCP port when the stage
    starts."""
    inputs: tuple[str, ...] = ()
    """Files and folders that the command reads. An input that no earlier stage makes must exist;
    the stage runs again when its content changes."""
    outputs: tuple[str, ...]
    """Files and folders that the command makes, in the job's output_dir."""
    environment: dict[str, str] = field(default_factory=dict)
    """Environment variables of the command, such as {OMP_NUM_THREADS: "1"}."""
    resumes: bool = False
    """Whether the command resumes from its outputs after a stop. Otherwise they are removed before
    it runs again."""

    def __post_init__(self) -> None:
        if not self.name.isidentifier():
            raise InputError(
                f"job.stages: name={self.name!r} must be letters, digits and underscores: it "
                "names a file"
            )
        for key in ("command", "outputs"):
            if not getattr(self, key):
                raise InputError(f"job.stages[{self.name}].{key} is empty: name at least one")


@dataclass(frozen=True, kw_only=True)
class StageOverrides:
    """Further options for a stage's command. On a command line each is quoted:
    'job.overrides.pretrain=["training.steps=8","optimizer.warmup_steps=2"]'.
    """

    draw_shapes: tuple[str, ...] = ()
    """Options of launch/draw_shapes.py."""
    hold_out_variants: tuple[str, ...] = ()
    """Options of launch/hold_out_variants.py."""
    build_shards: tuple[str, ...] = ()
    """Options of launch/build_shards.py."""
    train_text_tokenizer: tuple[str, ...] = ()
    """Options of launch/train_text_tokenizer.py."""
    train_image_tokenizer: tuple[str, ...] = ()
    """Options of launch/train_image_tokenizer.py."""
    encode_shards: tuple[str, ...] = ()
    """Options of launch/encode_shards.py."""
    pretrain: tuple[str, ...] = ()
    """Options of launch/pretrain.py."""
    export: tuple[str, ...] = ()
    """Options of launch/export.py."""
    generate: tuple[str, ...] = ()
    """Options of launch/generate.py."""
    caption: tuple[str, ...] = ()
    """Options of launch/caption.py."""
    evaluate: tuple[str, ...] = ()
    """Options of launch/evaluate.py."""
    report: tuple[str, ...] = ()
    """Options of launch/report.py."""


@dataclass(frozen=True, kw_only=True)
class JobConfig(Settings, section="job"):
    """A main job: a sequence of commands from raw pairs to a report."""

    name: str
    """Name of the job, for its output."""
    output_dir: LocalOutput
    """Folder of all outputs."""
    stages: tuple[StageConfig, ...]
    """Stages in order."""
    overrides: StageOverrides = field(default_factory=StageOverrides)
    """Further options per stage, appended to its command."""

    def __post_init__(self) -> None:
        super().__post_init__()
        names = [stage.name for stage in self.stages]
        if len(set(names)) != len(names) or not names:
            raise InputError(f"job.stages: names {names} must be different, and at least one")
        for stage in self.stages:
            for output in stage.outputs:
                _require_own_path(stage.name, output, self.output_dir)
        for overridden in fields(self.overrides):
            if getattr(self.overrides, overridden.name) and overridden.name not in names:
                raise InputError(
                    f"job.overrides.{overridden.name}: job {self.name} has no such stage; its "
                    f"stages are {', '.join(names)}"
                )

    def command(self, stage: StageConfig) -> tuple[str, ...]:
        """Return a stage's command with its overrides appended."""
        return stage.command + tuple(getattr(self.overrides, stage.name, ()))


@dataclass(frozen=True, kw_only=True)
class MainJobConfig(Settings):
    """Settings of launch/main_job.py."""

    job: JobConfig
    """Job, chosen by name: job=quickstart, job=scenes, job=emoji (conf/job/)."""
    force: bool = False
    """Whether to remove the job's files first, and run every stage."""


def _require_own_path(stage: str, output: str, output_dir: str) -> None:
    """Refuse outputs outside the job's folder, since outputs are removed before a rerun."""
    path, folder = PurePosixPath(output), PurePosixPath(output_dir)
    reserved = [folder / STAGES_FOLDER, folder / LOGS_FOLDER]
    is_inside = folder in path.parents and ".." not in path.parts
    if not is_inside or any(path == own or own in path.parents for own in reserved):
        raise InputError(
            f"job.stages[{stage}].outputs names {output}: an output must be in "
            f"job.output_dir={output_dir}, and not in its {STAGES_FOLDER}/ or {LOGS_FOLDER}/, "
            "because it is removed before the stage runs again"
        )
