"""One page that shows what a step was trained on: pictures, captions, where they are, losses.

The page is a single HTML file without scripts that reads nothing from anywhere. Captions, keys and
messages come from data that nobody has looked at: they are escaped, and characters that show
nothing or turn the direction of writing are spelled out.

Source: ours.
"""

import base64
import html
import io
import json
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime

import numpy as np
from PIL import Image

from ernie_vilg.data.records.ledger import StepRecord
from ernie_vilg.evaluation.page_style import STYLE
from ernie_vilg.forensics.explain_step import ExplainedSample, StepExplanation
from ernie_vilg.storage.locations import shown

_MAX_CHARACTERS = 1000
_MOST_FINDINGS = 100
_SHOWS_NOTHING = {"Cc", "Cf", "Cn", "Co", "Cs", "Zl", "Zp"}
_ZERO_WIDTH_JOINER = "\u200d"
"""Makes one emoji of several, and is left as it is."""

_STEP_STYLE = """
.notice { border-left: 4px solid #b91c1c; padding: 2px 14px; margin: 20px 0 16px; }
.notice.good { border-color: #047857; }
.card .figure.good { color: #047857; }
.card .figure.bad { color: #b91c1c; }
.batch { display: grid; grid-template-columns: repeat(auto-fill, minmax(310px, 1fr)); gap: 16px; }
.batch .pair { display: flex; flex-direction: column; gap: 6px; }
.batch .pictures { margin: 0; }
.batch .pictures figure { width: 128px; }
.batch .pictures img { width: 128px; display: block; }
.batch .pictures figcaption { font-size: 12px; color: var(--faint); }
.batch dl { display: grid; grid-template-columns: max-content 1fr; gap: 0 12px; margin: 0;
  font-size: 13px; }
.batch dt { color: var(--faint); }
.batch dd { margin: 0; overflow-wrap: anywhere; font-variant-numeric: tabular-nums; }
.line { display: block; font-size: 11px; background: var(--soft); border-radius: 4px;
  padding: 4px 6px; overflow-wrap: anywhere; user-select: all; margin-top: auto; }
.mark { color: #b91c1c; font-weight: 600; }
.long { overflow-x: auto; }
.long td { vertical-align: top; }
"""


def step_page(explanation: StepExplanation) -> str:
    """Return the whole page."""
    title = f"Step {explanation.history.record.last_step} of {_visible(str(explanation.run_dir))}"
    sections = [
        _headline(explanation),
        _certainty(explanation),
        _shown(explanation),
        _listed(explanation),
        _records(explanation),
        _damage(explanation),
        _data_sets(explanation),
    ]
    body = "\n".join(section for section in sections if section)
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<title>{title}</title>'
        '\n<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<style>{STYLE}{_STEP_STYLE}</style>\n</head>\n<body>\n<main>\n<h1>{title}</h1>\n{body}\n"
        "</main>\n</body>\n</html>\n"
    )


def quarantine_line(sample: ExplainedSample) -> str:
    """Return the line of quarantine.jsonl that leaves a sample out, in ASCII."""
    return json.dumps(
        {"key": sample.key, "shard": sample.shard, "data_set": sample.data_set, "reason": ""}
    )


def _headline(explanation: StepExplanation) -> str:
    record, samples = explanation.history.record, explanation.samples
    last = record.first_position + record.num_positions - 1
    replaced = sum(sample.left_out is not None for sample in samples)
    certain, kind = ("no", "bad") if explanation.doubts else ("yes", "good")
    cards = [
        ("Certain", certain, kind, "whether this is the very batch that was trained on"),
        ("Samples", str(len(samples)), "", f"positions {record.first_position} to {last}"),
        ("Replaced", str(replaced), "", "left out, as damaged or in quarantine"),
    ]
    if explanation.checkpoint_step is not None:
        image, text = (
            np.mean([getattr(sample, name) for sample in samples])
            for name in ("text_to_image", "image_to_text")
        )
        under = f"under the weights of step {explanation.checkpoint_step}"
        cards.append(
            (
                "Text to image",
                f"{image:.3f}",
                "",
                f"nats per image code, mean of the samples, {under}",
            )
        )
        cards.append(
            (
                "Image to text",
                f"{text:.3f}",
                "",
                f"nats per text piece, mean of the samples, {under}",
            )
        )
    body = "".join(
        f'<div class="card"><div class="name">{name}</div><div class="figure {kind}">{figure}'
        f'</div><div class="what">{what}</div></div>'
        for name, figure, kind, what in cards
    )
    return f'<section class="cards">{body}</section>'


def _certainty(explanation: StepExplanation) -> str:
    history, record = explanation.history, explanation.history.record
    notices = [_notice(f"Not certain: {doubt}.") for doubt in explanation.doubts]
    if not notices:
        text = "Order, shards and quarantine have the digests that the ledger recorded."
        notices.append(_notice(text, "good"))
    if not history.is_in_effect:
        text = (
            "The run has gone back to before this step since, and not made it again: no weights "
            "of now have seen this batch."
        )
        notices.append(_notice(text))
    per_replica = record.num_positions // record.data_parallel_size
    made = (
        f"Made {_time(record)} by launch {record.launch} of the run: {record.data_parallel_size} "
        f"replica(s) with {per_replica} samples each, {record.micro_batch_size} per forward pass."
    )
    return f"<section>{''.join(notices)}<p class='faint'>{made}</p></section>"


def _shown(explanation: StepExplanation) -> str:
    cards = "".join(_card(sample) for sample in explanation.shown)
    step = explanation.checkpoint_step
    if step is None:
        order = "In the order of positions."
    else:
        has_seen = "" if step >= explanation.history.record.last_step else "not "
        order = (
            "The largest loss first, by the sum that the run weighs the two directions by. Losses "
            f"are under the weights of step {step}, without dropout: this step had {has_seen}been "
            "made by then."
        )
    note = (
        f"<p>{order} The line at the foot of a sample, put into the run's quarantine.jsonl, leaves "
        "it out from the next start on.</p>"
    )
    return _section("Samples", f'{note}<div class="batch">{cards}</div>')


def _card(sample: ExplainedSample) -> str:
    pictures = [
        f"<figure>{_image(pixels, what)}<figcaption>{what}</figcaption></figure>"
        for pixels, what in ((sample.picture, "from its codes"), (sample.original, "original"))
        if pixels is not None
    ]
    facts = [
        ("key", f"<code>{_visible(sample.key)}</code>"),
        ("shard", f"{_visible(sample.shard)}, sample {sample.index}"),
        ("data set", f"{_visible(sample.data_set)}, epoch {sample.epoch}"),
        ("position", f"{sample.position}, rank {sample.data_rank}, pass {sample.micro_batch}"),
        *_loss_facts(sample),
    ]
    if sample.text != sample.caption:
        facts.insert(0, ("read as", f'<bdi lang="zh">{_visible(sample.text)}</bdi>'))
    if sample.left_out is not None:
        facts.append(("stands for", _left_out(sample)))
    if sample.doubt:
        facts.append(("doubt", f'<span class="mark">{_visible(sample.doubt)}</span>'))
    rows = "".join(f"<dt>{name}</dt><dd>{value}</dd>" for name, value in facts)
    caption = f'<bdi lang="zh">{_visible(sample.caption) or "(no caption)"}</bdi>'
    return (
        f'<div class="pair"><div class="pictures">{"".join(pictures)}</div><div>{caption}</div>'
        f'<dl>{rows}</dl><code class="line">{_visible(quarantine_line(sample))}</code></div>'
    )


def _loss_facts(sample: ExplainedSample) -> list[tuple[str, str]]:
    if sample.text_to_image is None or sample.image_to_text is None:
        return []
    losses = (("text to image", sample.text_to_image), ("image to text", sample.image_to_text))
    return [
        (name, f"{loss:.3f}{_mark('outlier') if name in sample.outlying else ''}")
        for name, loss in losses
    ]


def _left_out(sample: ExplainedSample) -> str:
    left_out = sample.left_out
    assert left_out is not None
    key = f"<code>{_visible(left_out.key)}</code>, " if left_out.key else ""
    where = f"{_visible(left_out.shard)}, sample {left_out.index}"
    return f"{key}{where}: {_visible(left_out.reason)}"


def _listed(explanation: StepExplanation) -> str:
    samples = explanation.listed
    if not samples:
        return ""
    has_losses = explanation.checkpoint_step is not None
    columns: list[tuple[str, Callable[[ExplainedSample], str]]] = [
        ("Position", lambda sample: str(sample.position)),
        ("Rank, pass", lambda sample: f"{sample.data_rank}, {sample.micro_batch}"),
        ("Key", lambda sample: f"<code>{_visible(sample.key)}</code>"),
        ("Shard, sample", lambda sample: f"{_visible(sample.shard)}, {sample.index}"),
        ("Data set", lambda sample: f"{_visible(sample.data_set)}, epoch {sample.epoch}"),
        ("Caption", lambda sample: f'<bdi lang="zh">{_visible(sample.caption)}</bdi>'),
    ]
    if any(sample.left_out is not None for sample in samples):
        columns.append(
            ("Stands for", lambda sample: "" if sample.left_out is None else _left_out(sample))
        )
    if has_losses:
        columns.append(("Losses", lambda sample: ", ".join(dict(_loss_facts(sample)).values())))
    rows = [[show(sample) for _, show in columns] for sample in samples]
    table = _table([name for name, _ in columns], rows)
    return _section(f"The other {len(samples)} samples of the batch", table)


def _records(explanation: StepExplanation) -> str:
    history, ledger = explanation.history, explanation.ledger
    notes = []
    if ledger.damaged or ledger.torn_bytes:
        notes.append(
            f"{len(ledger.damaged)} of the ledger's records are damaged and were skipped, "
            f"{ledger.torn_bytes} bytes at its end are of a record that is not whole."
        )
    if not history.earlier and not notes:
        return ""
    body = "".join(f"<p>{note}</p>" for note in notes)
    if history.earlier:
        rows = [
            [
                _time(record),
                str(record.launch),
                f"{record.first_position} to {record.first_position + record.num_positions - 1}",
                f"<code>{record.sequence}</code>",
                f"<code>{record.quarantine}</code>",
                "what counts" if record is history.record else "rolled back",
            ]
            for record in (*history.earlier, history.record)
        ]
        head = ["Made", "Launch", "Positions", "Order", "Quarantine", ""]
        body += "<p>The step was made more than once.</p>" + _table(head, rows)
    return _section("Records of this step", body)


def _damage(explanation: StepExplanation) -> str:
    damage = explanation.damage
    if not damage.findings and not damage.num_damaged_lines:
        return ""
    counts = ", ".join(
        f"{count} {_visible(reason)}" for reason, count in damage.num_samples_by_reason.items()
    )
    note = f"<p>Samples lost in the whole run: {damage.num_samples} ({counts})."
    if damage.num_damaged_lines:
        note += f" {damage.num_damaged_lines} lines of this log cannot be read."
    if len(damage.findings) > _MOST_FINDINGS:
        note += f" The first {_MOST_FINDINGS} of {len(damage.findings)} findings:"
    rows = [
        [
            str(finding.position),
            _visible(finding.data_set),
            _visible(finding.shard),
            "all"
            if finding.index is None
            else f"{finding.index} <code>{_visible(finding.key)}</code>",
            _visible(finding.reason),
            _visible(finding.detail),
        ]
        for finding in damage.findings[:_MOST_FINDINGS]
    ]
    head = ["Met at position", "Data set", "Shard", "Sample", "Reason", "Found"]
    return _section("Damage", f"{note}</p>{_table(head, rows)}")


def _data_sets(explanation: StepExplanation) -> str:
    rows = [
        [
            _visible(source.name),
            _visible(shown(source.location)),
            f"{source.manifest.num_samples:,}",
            f"{len(source.manifest.shards):,}",
            f"<code>{source.manifest.digest()[:16]}</code>",
        ]
        for source in explanation.sources
    ]
    return _section(
        "Data sets", _table(["Name", "Read from", "Samples", "Shards", "Manifest"], rows)
    )


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table of cells that are HTML already."""
    names = "".join(f"<th>{name}</th>" for name in head)
    lines = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in rows)
    table = f"<table><thead><tr>{names}</tr></thead><tbody>{lines}</tbody></table>"
    return f"<div class='long'>{table}</div>"


def _section(title: str, body: str) -> str:
    return f"<section><h2>{title}</h2>\n{body}</section>"


def _notice(text: str, kind: str = "") -> str:
    return f'<p class="notice {kind}">{_visible(text)}</p>'


def _mark(word: str) -> str:
    return f' <span class="mark">{word}</span>'


def _time(record: StepRecord) -> str:
    made = datetime.fromtimestamp(record.unix_seconds, UTC)
    return made.strftime("%Y-%m-%d %H:%M:%S UTC")


def _image(pixels: np.ndarray, description: str) -> str:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    data = base64.b64encode(buffer.getvalue()).decode()
    return f'<img alt="{description}" src="data:image/png;base64,{data}">'


def _visible(text: str) -> str:
    """Return text of others as HTML: escaped, not too long, and with nothing hidden in it."""
    cut = text[:_MAX_CHARACTERS]
    shown = "".join(
        character
        if unicodedata.category(character) not in _SHOWS_NOTHING or character == _ZERO_WIDTH_JOINER
        else ascii(character)[1:-1]
        for character in cut
    )
    rest = f" (and {len(text) - len(cut)} characters more)" if len(cut) < len(text) else ""
    return html.escape(shown + rest)
