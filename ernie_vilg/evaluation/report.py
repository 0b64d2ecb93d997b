"""The report of a main job: figures, curves, pictures, captions, time and memory on one page."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ernie_vilg.errors import InputError
from ernie_vilg.evaluation.harder_sets import (
    CAPTIONS_OF_SETS_FILE,
    DISTURBED,
    UNSEEN_PAIRS,
    table_of,
)
from ernie_vilg.evaluation.page import render
from ernie_vilg.evaluation.pairs import EVALUATION_FILE, PAIRS_FILE
from ernie_vilg.evaluation.retrieval import SHOWN
from ernie_vilg.evaluation.run_report.filmstrip import Strip, filmstrip
from ernie_vilg.evaluation.run_report.run_charts import (
    LOSSES,
    TOKENIZER_LOSSES,
    Section,
    log_charts,
    run_charts,
)
from ernie_vilg.evaluation.run_report.runs import LoggedRun, read_log
from ernie_vilg.evaluation.validation_charts import gaps
from ernie_vilg.runs.run_folder import RunFolder
from ernie_vilg.storage.json_files import read_object
from ernie_vilg.storage.jsonl import read_lines
from ernie_vilg.system.progress import duration

_MOST_ERRORS = 6
_MOST_OF_A_SET, _MOST_WRONG_OF_A_SET = 4, 3


@dataclass(frozen=True, kw_only=True)
class ReportContent:
    """Everything the page shows."""

    title: str
    """Heading."""
    command: str
    """Command that reproduces the job."""
    versions: Mapping[str, str]
    """Versions of the libraries, and the machine, by name."""
    stages: Mapping[str, Mapping[str, Any]]
    """State of each finished stage, in order: seconds, peak_memory_bytes, command."""
    scores: Mapping[str, Any]
    """Content of evaluation.json."""
    pairs: Sequence[Mapping[str, Any]]
    """Content of pairs.jsonl; files are relative to `evaluation`."""
    of_sets: Sequence[Mapping[str, Any]]
    """Content of captions_of_sets.jsonl, empty without disturbed sets."""
    evaluation: Path
    """Folder of the evaluation."""
    pretrain: LoggedRun
    """Log of the pretraining run."""
    image_tokenizer: LoggedRun
    """Log of the image tokenizer's run."""
    samples: Strip | None
    """Samples of the pretraining run; None without any."""
    trained_on: bool
    """True if the pairs were trained on."""
    examples: int
    """Number of pairs shown of each direction."""

    @property
    def pair_kind(self) -> str:
        """Adjective of the pairs on the page."""
        return "training" if self.trained_on else "unseen"


def read_content(
    *,
    title: str,
    command: str,
    versions: Mapping[str, str],
    pretrain: Path,
    image_tokenizer: Path,
    evaluation: Path,
    stages: Mapping[str, Mapping[str, Any]],
    trained_on: bool,
    examples: int,
    sample_steps: int,
) -> ReportContent:
    """Read the files that the runs of the job left; the arguments are settings of launch/report.py.

    Raises:
        InputError: the evaluation is missing or damaged.
    """
    scores, pairs = evaluation / EVALUATION_FILE, evaluation / PAIRS_FILE
    for path in (scores, pairs):
        if not path.is_file():
            raise InputError(f"{path} does not exist: run launch/evaluate.py into {evaluation}")
    return ReportContent(
        title=title,
        command=command,
        versions=versions,
        stages=stages,
        scores=read_object(scores),
        pairs=[line.require() for line in read_lines(pairs)],
        of_sets=_captions_of_sets(evaluation),
        evaluation=evaluation,
        pretrain=read_log(pretrain, "pretraining"),
        image_tokenizer=read_log(image_tokenizer, "image tokenizer"),
        samples=filmstrip(RunFolder(pretrain).all_samples(), sample_steps),
        trained_on=trained_on,
        examples=examples,
    )


def report_html(content: ReportContent) -> str:
    """Return the whole page."""
    stages = content.stages.values()
    return render(
        "ernie_vilg.evaluation",
        "report.html",
        title=content.title,
        command=content.command,
        versions=content.versions,
        pair_kind=content.pair_kind,
        trained_on=content.trained_on,
        figures=_figures(content),
        charts=_charts(content),
        drawn=_drawn(content),
        written=_written(content),
        retrieval=_retrieval(content),
        table=table_of(content.scores),
        disturbed=_disturbed(content),
        unseen=content.scores.get(UNSEEN_PAIRS),
        tokenizer=content.scores["image_tokenizer"],
        samples=content.samples,
        stages=content.stages,
        seconds=sum(state["seconds"] for state in stages),
        peak_memory=max((state["peak_memory_bytes"] for state in stages), default=0),
        read_png=lambda file: (content.evaluation / file).read_bytes(),
        percent=_percent,
        gib=_gib,
    )


def _figures(content: ReportContent) -> list[tuple[str, str, str]]:
    """Return the cards at the top of the page: name, figure and meaning of each."""
    drawn, written = content.scores["text_to_image"], content.scores["image_to_text"]
    tokenizer, pairs = content.scores["image_tokenizer"], content.scores["pairs"]
    figures: list[tuple[str, str, str]] = []
    if "objects_correct" in drawn:
        what = f"of {drawn['num_objects']} objects drawn right: shape, colour, size and quadrant"
        if (drawings := content.scores.get("drawings", 1)) > 1:
            what += f"; the model chose one of {drawings} pictures"
        figures.append(("Text to image", _percent(drawn["objects_correct"]), what))
    if "psnr_of_mean_picture" in drawn:
        mean = f"{drawn['psnr_of_mean_picture']:.1f} dB"
        what = f"of drawn pictures to the true ones; the mean picture's is {mean}"
        figures.append(("Text to image", f"{drawn['psnr']:.1f} dB", what))
    if "captions_correct" in written:
        share = written["captions_correct"]
        what = f"of {pairs} captions name exactly what the picture shows"
    else:
        share = written["exact_matches"]
        what = f"of {pairs} captions equal the data set's, letter by letter"
    figures.append(("Image to text", _percent(share), what))
    figures += [gap.card() for gap in gaps(content.pretrain.entries)]
    if retrieval := content.scores.get("retrieval"):
        figures += _retrieval_figures(retrieval)
    usage = f"with {_percent(tokenizer['codebook_usage'])} of the codebook in use"
    figures.append(("Image tokenizer", f"{tokenizer['psnr']:.1f} dB", usage))
    if stages := content.stages.values():
        seconds = duration(sum(state["seconds"] for state in stages))
        figures.append(("Time", seconds, "for all stages, up to this page"))
        peak = _gib(max(state["peak_memory_bytes"] for state in stages))
        figures.append(("Memory", f"{peak} GiB", "the largest stage, all its processes together"))
    return figures


def _charts(content: ReportContent) -> list[Section]:
    """Return the charts that have a curve, by the heading they stand under."""
    of_tokenizer = log_charts([content.image_tokenizer], TOKENIZER_LOSSES)
    sections = run_charts([content.pretrain], LOSSES)
    return sections + ([("Image tokenizer's training", of_tokenizer)] if of_tokenizer else [])


def _drawn(content: ReportContent) -> dict[str, Any]:
    """Choose the pairs whose drawings the page shows: the first ones, then wrong ones."""
    wrong = [
        pair
        for pair in content.pairs[content.examples :]
        if pair.get("objects_correct") != pair.get("objects")
    ]
    return {
        "examples": content.pairs[: content.examples],
        "wrong": wrong[:_MOST_ERRORS],
        "num_wrong": len(wrong),
    }


def _written(content: ReportContent) -> dict[str, Any]:
    """Choose the pairs whose written captions the page shows: the first ones, then wrong ones."""
    wrong = [pair for pair in content.pairs if pair.get("caption_correct") is False]
    first = content.pairs[: content.examples]
    examples = [*first, *[pair for pair in wrong if pair not in first][:_MOST_ERRORS]]
    return {
        "examples": examples,
        "num_wrong": len(wrong),
        "num_wrong_shown": sum(pair in examples for pair in wrong),
        "is_judged": any("caption_correct" in pair for pair in content.pairs),
    }


def _retrieval_figures(retrieval: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Return the cards of both questions, by the likelihood of the text given the picture."""
    count = retrieval["candidates"]
    captions = retrieval["captions_of_pictures"][SHOWN]["recall_at_10"]
    pictures = retrieval["pictures_of_captions"][SHOWN]["recall_at_10"]
    return [
        (
            "Caption retrieval",
            _percent(captions),
            f"of pictures have their caption among the best 10 of {count}, by text given image",
        ),
        (
            "Picture retrieval",
            _percent(pictures),
            f"of captions have their picture among the best 10 of {count}, by text given image",
        ),
    ]


def _retrieval(content: ReportContent) -> dict[str, Any] | None:
    """Return the tables of retrieval and the first pairs that took part; None without retrieval."""
    figures = content.scores.get("retrieval")
    if figures is None:
        return None
    took_part = [pair for pair in content.pairs if "caption_rank" in pair]
    return {
        "candidates": figures["candidates"],
        "questions": {
            "Captions of a picture": figures["captions_of_pictures"],
            "Pictures of a caption": figures["pictures_of_captions"],
        },
        "examples": took_part[: content.examples],
        "pairs": content.pairs,
    }


def _captions_of_sets(evaluation: Path) -> list[dict[str, Any]]:
    path = evaluation / CAPTIONS_OF_SETS_FILE
    return [line.require() for line in read_lines(path)] if path.is_file() else []


def _disturbed(content: ReportContent) -> list[dict[str, Any]]:
    """Choose the pictures that the page shows of each disturbed set: wrong ones, then the first."""
    sets = []
    for name in content.scores.get(DISTURBED, {}):
        pairs = [pair for pair in content.of_sets if pair["set"] == name]
        wrong = [pair for pair in pairs if not pair["caption_correct"]]
        right = [pair for pair in pairs if pair["caption_correct"]]
        sets.append(
            {
                "name": name.replace("_", " "),
                "num_pairs": len(pairs),
                "num_wrong": len(wrong),
                "examples": [*wrong[:_MOST_WRONG_OF_A_SET], *right][:_MOST_OF_A_SET],
            }
        )
    return sets


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _gib(num_bytes: int) -> str:
    return f"{num_bytes / 2**30:.2f}"
