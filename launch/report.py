"""Write the report page of a main job."""

import os
import platform
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

from data_pipelines.outputs import check_output_file
from ernie_vilg.config.evaluation import ReportConfig
from ernie_vilg.config.schema import from_json
from ernie_vilg.storage.files import write_bytes
from ernie_vilg.storage.json_files import read_json
from ernie_vilg.storage.locations import check_folders
from launch.jobs.stages import StageState
from launch.support.program import program

_LIBRARIES = ("torch", "deepspeed", "megatron-core")


@program("report", ReportConfig)
def main(config: ReportConfig) -> None:
    """Collect the stages' results and write one HTML file."""
    # Imported here so that a bad setting is reported before matplotlib is loaded.
    from ernie_vilg.evaluation.report import read_content, report_html

    inputs = ("pretrain_run", "tokenizer_run", "evaluation", "stages")
    check_folders({name: getattr(config, name) for name in inputs})
    output = check_output_file("output", config.output)
    files = sorted(Path(config.stages).glob("*.json"))
    states = [(path.stem, from_json(read_json(path), StageState, str(path))) for path in files]
    finished = [(name, asdict(state)) for name, state in states if state.status == "finished"]
    content = read_content(
        title=config.title,
        command=config.command,
        versions=_versions(),
        pretrain=Path(config.pretrain_run),
        image_tokenizer=Path(config.tokenizer_run),
        evaluation=Path(config.evaluation),
        stages=dict(sorted(finished, key=lambda item: item[1]["number"])),
        trained_on=config.trained_on,
        examples=config.examples,
    )
    write_bytes(output, report_html(content).encode())
    print(f"{config.output}: open it in a browser")


def _versions() -> dict[str, str]:
    libraries = {name: version(name) for name in _LIBRARIES}
    machine = f"{platform.system()} {platform.machine()}, {os.cpu_count()} processors"
    return {"Python": platform.python_version(), **libraries, "on": machine}


if __name__ == "__main__":
    main()
