"""One page that shows what a main job did: figures, curves, pictures, captions, cost.

The page is a single HTML file. Pictures and charts stand in it as data, there are no scripts, and
it reads nothing from anywhere, so it can be mailed and opened without a network.

Source: ours.
"""

import base64
import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ernie_vilg.errors import InputError
from ernie_vilg.evaluation.charts import curves, line_chart, read_metrics
from ernie_vilg.evaluation.page_style import STYLE
from ernie_vilg.runs.run_folder import RunFolder
from ernie_vilg.storage.json_files import read_object
from ernie_vilg.storage.jsonl import read_lines
from ernie_vilg.system.progress import duration

_GIB = 2**30
_MOST_ERRORS = 6


@dataclass(frozen=True, kw_only=True)
class ReportContent:
    """Everything the page shows."""

    title: str
    """Heading."""
    command: str
    """What reproduces it."""
    versions: Mapping[str, str]
    """Of the libraries and the machine, by name."""
    stages: Mapping[str, Mapping[str, Any]]
    """State of each finished stage, in order: seconds, peak_memory_bytes, command."""
    scores: Mapping[str, Any]
    """evaluation.json."""
    pairs: Sequence[Mapping[str, Any]]
    """pairs.jsonl; files are relative to `evaluation`."""
    evaluation: Path
    """Folder of the evaluation."""
    pretrain_metrics: Sequence[Mapping[str, float]]
    """Entries of the pretraining run's metrics.jsonl."""
    tokenizer_metrics: Sequence[Mapping[str, float]]
    """Entries of the image tokenizer's metrics.jsonl."""
    samples: Sequence[Path]
    """Sample grids of the pretraining run, in the order of steps."""
    trained_on: bool
    """Whether the pairs were trained on."""
    examples: int
    """Pairs shown of each direction."""

    @property
    def pair_kind(self) -> str:
        """What the page calls the pairs."""
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
) -> ReportContent:
    """Gather what the runs left behind.

    Raises:
        InputError: the evaluation is missing or damaged.
    """
    scores, pairs = evaluation / "evaluation.json", evaluation / "pairs.jsonl"
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
        evaluation=evaluation,
        pretrain_metrics=read_metrics(RunFolder(pretrain).metrics),
        tokenizer_metrics=read_metrics(RunFolder(image_tokenizer).metrics),
        samples=RunFolder(pretrain).all_samples(),
        trained_on=trained_on,
        examples=examples,
    )


def report_html(content: ReportContent) -> str:
    """Return the whole page."""
    sections = [
        _headline(content),
        _training(content),
        _drawn(content),
        _written(content),
        _reconstructed(content),
        _samples(content),
        _cost(content),
        _reproduce(content),
    ]
    title = html.escape(content.title)
    body = "\n".join(section for section in sections if section)
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<title>{title}</title>'
        '\n<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<style>{STYLE}</style>\n</head>\n<body>\n<main>\n<h1>{title}</h1>\n{body}\n"
        "</main>\n</body>\n</html>\n"
    )


def _headline(content: ReportContent) -> str:
    drawn = content.scores["text_to_image"]
    written = content.scores["image_to_text"]
    tokenizer = content.scores["image_tokenizer"]
    figures: list[tuple[str, str, str]] = []
    if "objects_correct" in drawn:
        what = f"of {drawn['num_objects']} objects drawn right: shape, colour, size and quadrant"
        figures.append((_percent(drawn["objects_correct"]), "Text to image", what))
    if "captions_correct" in written:
        what = f"of {content.scores['pairs']} captions name exactly what the picture shows"
        figures.append((_percent(written["captions_correct"]), "Image to text", what))
    else:
        what = f"of {content.scores['pairs']} captions equal the data set's, letter by letter"
        figures.append((_percent(written["exact_matches"]), "Image to text", what))
    usage = f"with {_percent(tokenizer['codebook_usage'])} of the codebook in use"
    figures.append((f"{tokenizer['psnr']:.1f} dB", "Image tokenizer", usage))
    if content.stages:
        figures.append((duration(_seconds(content)), "Time", "for all stages, up to this page"))
        peak = f"{_peak_memory(content) / _GIB:.2f} GiB"
        figures.append((peak, "Memory", "the largest stage, all its processes together"))
    cards = "".join(
        f'<div class="card"><div class="name">{name}</div><div class="figure">{figure}</div>'
        f'<div class="what">{what}</div></div>'
        for figure, name, what in figures
    )
    return f'<section class="cards">{cards}</section>'


def _training(content: ReportContent) -> str:
    losses = curves(
        content.pretrain_metrics,
        {
            "loss": "total",
            "loss_text_to_image": "text to image",
            "loss_image_to_text": "image to text",
        },
    )
    quality = curves(content.tokenizer_metrics, {"psnr": "PSNR"})
    tokenizer_loss = curves(content.tokenizer_metrics, {"loss": "loss"})
    charts = []
    if losses:
        chart = line_chart(losses, title="Pretraining loss", y_label="nats per token")
        charts.append(_chart(chart, "Pretraining loss over steps, total and per direction"))
    if quality:
        chart = line_chart(quality, title="Image tokenizer, PSNR", y_label="dB")
        charts.append(_chart(chart, "PSNR of the image tokenizer over steps"))
    elif tokenizer_loss:
        chart = line_chart(
            tokenizer_loss, title="Image tokenizer, loss", y_label="loss", logarithmic=True
        )
        charts.append(_chart(chart, "Loss of the image tokenizer over steps"))
    return _section("Training", f'<div class="charts">{"".join(charts)}</div>') if charts else ""


def _drawn(content: ReportContent) -> str:
    def card(pair: Mapping[str, Any]) -> str:
        verdict = ""
        if "objects" in pair:
            is_right = pair["objects_correct"] == pair["objects"]
            verdict = _verdict(is_right, f"{pair['objects_correct']} of {pair['objects']} objects")
        return (
            f'<figure class="pair"><div class="pictures">{_picture(content, pair["original"])}'
            f"{_picture(content, pair['drawn'])}</div>"
            f'<figcaption lang="zh">{html.escape(pair["caption"])}</figcaption>{verdict}</figure>'
        )

    cards = "".join(card(pair) for pair in content.pairs[: content.examples])
    wrong = [
        pair
        for pair in content.pairs[content.examples :]
        if pair.get("objects_correct") != pair.get("objects")
    ]
    errors = ""
    if wrong:
        shown = "".join(card(pair) for pair in wrong[:_MOST_ERRORS])
        count = f"{min(len(wrong), _MOST_ERRORS)} of {len(wrong)}"
        errors = f'<h3>Wrong ones beyond these ({count})</h3><div class="pairs">{shown}</div>'
    seen = "was trained on" if content.trained_on else "never saw"
    note = (
        f"<p>Left: the data set's picture, which the model {seen}. Right: its own, from the "
        "caption alone.</p>"
    )
    title = f"Pictures for {content.pair_kind} captions"
    return _section(title, f'{note}<div class="pairs">{cards}</div>{errors}')


def _written(content: ReportContent) -> str:
    wrong = [pair for pair in content.pairs if pair.get("caption_correct") is False]
    first = content.pairs[: content.examples]
    rows = [*first, *[pair for pair in wrong if pair not in first][:_MOST_ERRORS]]
    is_judged = any("caption_correct" in pair for pair in content.pairs)
    lines = []
    for pair in rows:
        cell = f"<td>{_verdict(pair['caption_correct'])}</td>" if is_judged else ""
        lines.append(
            f"<tr><td>{_picture(content, pair['original'])}</td>"
            f'<td lang="zh">{html.escape(pair["written"])}</td>'
            f'<td lang="zh" class="faint">{html.escape(pair["caption"])}</td>{cell}</tr>'
        )
    judged = "<th>Judged</th>" if is_judged else ""
    head = f"<tr><th>Picture</th><th>The model's caption</th><th>The data set's</th>{judged}</tr>"
    shown = sum(pair in rows for pair in wrong)
    note = f"<p>Wrong in all: {len(wrong)}, of which {shown} stand below.</p>" if wrong else ""
    table = f"<table><thead>{head}</thead><tbody>{''.join(lines)}</tbody></table>"
    return _section(f"Captions for {content.pair_kind} pictures", note + table)


def _reconstructed(content: ReportContent) -> str:
    tokenizer = content.scores["image_tokenizer"]
    ceiling = ""
    if "objects_correct" in tokenizer:
        ceiling = (
            f" Of the objects {_percent(tokenizer['objects_correct'])} are still read correctly: "
            "the ceiling for everything drawn."
        )
    note = (
        f"<p>{content.pair_kind.capitalize()} pictures, and below each what remains after the "
        f"image tokenizer alone ({tokenizer['psnr']:.1f} dB).{ceiling}</p>"
    )
    picture = _image(content.evaluation / "reconstructed.png", "Originals above reconstructions")
    return _section("Image tokenizer", f'{note}<div class="wide">{picture}</div>')


def _samples(content: ReportContent) -> str:
    if not content.samples:
        return ""
    figures = "".join(
        f"<figure>{_image(path, path.stem)}<figcaption>{html.escape(_step(path))}</figcaption>"
        "</figure>"
        for path in content.samples
    )
    return _section("Samples while it trained", f'<div class="samples">{figures}</div>')


def _cost(content: ReportContent) -> str:
    if not content.stages:
        return ""
    rows = "".join(
        f"<tr><td>{html.escape(name)}</td><td class='number'>{state['seconds']:.1f}</td>"
        f"<td class='number'>{state['peak_memory_bytes'] / _GIB:.2f}</td>"
        f"<td><code>{html.escape(state['command'])}</code></td></tr>"
        for name, state in content.stages.items()
    )
    total = (
        f"<tr class='total'><td>all</td><td class='number'>{_seconds(content):.1f}</td>"
        f"<td class='number'>{_peak_memory(content) / _GIB:.2f}</td><td></td></tr>"
    )
    head = (
        "<tr><th>Stage</th><th class='number'>Seconds</th><th class='number'>Peak GiB</th>"
        "<th>Command</th></tr>"
    )
    table = f"<table class='cost'><thead>{head}</thead><tbody>{rows}{total}</tbody></table>"
    return _section("Time and memory", table)


def _reproduce(content: ReportContent) -> str:
    versions = ", ".join(f"{html.escape(k)} {html.escape(v)}" for k, v in content.versions.items())
    return _section(
        "How to reproduce",
        f"<pre><code>{html.escape(content.command)}</code></pre><p class='faint'>{versions}</p>",
    )


def _section(title: str, body: str) -> str:
    return f"<section><h2>{html.escape(title)}</h2>\n{body}</section>"


def _verdict(is_right: bool, detail: str = "") -> str:
    word, kind = ("right", "right") if is_right else ("wrong", "wrong")
    text = f"{word}, {detail}" if detail and not is_right else word
    return f'<span class="{kind}">{text}</span>'


def _picture(content: ReportContent, file: str) -> str:
    return _image(content.evaluation / file, file)


def _image(path: Path, description: str) -> str:
    data = base64.b64encode(path.read_bytes()).decode()
    return f'<img alt="{html.escape(description)}" src="data:image/png;base64,{data}">'


def _chart(svg: str, description: str) -> str:
    data = base64.b64encode(svg.encode()).decode()
    return f'<img class="chart" alt="{description}" src="data:image/svg+xml;base64,{data}">'


def _step(path: Path) -> str:
    return f"step {path.stem.removeprefix('step_').lstrip('0') or '0'}"


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _seconds(content: ReportContent) -> float:
    return float(sum(state["seconds"] for state in content.stages.values()))


def _peak_memory(content: ReportContent) -> int:
    return max(int(state["peak_memory_bytes"]) for state in content.stages.values())
