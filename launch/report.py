"""Write the report page of training runs side by side, or of a main job."""

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
    """Collect the results of runs, or of a main job's stages, and write one HTML file."""
    output = check_output_file("output", config.output)
    page = _page_of_runs(config) if config.runs else _page_of_main_job(config)
    write_bytes(output, page.encode())
    print(f"{config.output}: open it in a browser")


def _page_of_runs(config: ReportConfig) -> str:
    # Imported here so that a bad setting is reported before matplotlib is loaded.
    from ernie_vilg.evaluation.run_report.page import runs_html

    return runs_html(config.runs, title=config.title, sample_steps=config.sample_steps)


def _page_of_main_job(config: ReportConfig) -> str:
    inputs = ("pretrain_run", "tokenizer_run", "evaluation", "stages")
    pretrain, tokenizer, evaluation, stages = (str(getattr(config, name)) for name in inputs)
    check_folders(dict(zip(inputs, (pretrain, tokenizer, evaluation, stages), strict=True)))
    from ernie_vilg.evaluation.report import read_content, report_html

    files = sorted(Path(stages).glob("*.json"))
    states = [(path.stem, from_json(read_json(path), StageState, str(path))) for path in files]
    finished = [(name, asdict(state)) for name, state in states if state.status == "finished"]
    content = read_content(
        title=str(config.title),
        command=str(config.command),
        versions=_versions(),
        pretrain=Path(pretrain),
        image_tokenizer=Path(tokenizer),
        evaluation=Path(evaluation),
        stages=dict(sorted(finished, key=lambda item: item[1]["number"])),
        trained_on=config.trained_on,
        examples=config.examples,
        sample_steps=config.sample_steps,
    )
    return report_html(content)


def _versions() -> dict[str, str]:
    libraries = {name: version(name) for name in _LIBRARIES}
    machine = f"{platform.system()} {platform.machine()}, {os.cpu_count()} processors"
    return {"Python": platform.python_version(), **libraries, "on": machine}


if __name__ == "__main__":
    main()
