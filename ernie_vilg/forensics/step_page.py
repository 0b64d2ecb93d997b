"""A page that shows what a step was trained on: pictures, captions, where they are, losses.

The page is a single HTML file that loads nothing. Captions, keys and messages come from data that
nobody has checked: the template escapes them and spells out invisible characters.
"""

import io
import json
from datetime import UTC, datetime

import numpy as np
from PIL import Image

from ernie_vilg.data.records.ledger import StepRecord
from ernie_vilg.evaluation.page import render, visible
from ernie_vilg.forensics.explain_step import ExplainedSample, StepExplanation
from ernie_vilg.storage.locations import shown

_MAX_FINDINGS = 100


def step_page(explanation: StepExplanation) -> str:
    """Return the whole page."""
    record, samples = explanation.history.record, explanation.samples
    return render(
        "ernie_vilg.forensics",
        "step.html",
        title=f"Step {record.last_step} of {visible(str(explanation.run_dir))}",
        record=record,
        history=explanation.history,
        doubts=explanation.doubts,
        samples=samples,
        shown=explanation.shown,
        listed=explanation.listed,
        sources=explanation.sources,
        damage=explanation.damage,
        max_findings=_MAX_FINDINGS,
        checkpoint_step=explanation.checkpoint_step,
        mean_loss=lambda name: np.mean([getattr(sample, name) for sample in samples]),
        last_position=lambda record: record.first_position + record.num_positions - 1,
        time=_time,
        png=_png,
        quarantine_line=quarantine_line,
        without_secrets=shown,
    )


def quarantine_line(sample: ExplainedSample) -> str:
    """Return the line of quarantine.jsonl that leaves a sample out, in ASCII."""
    return json.dumps(
        {"key": sample.key, "shard": sample.shard, "data_set": sample.data_set, "reason": ""}
    )


def _time(record: StepRecord) -> str:
    begun = datetime.fromtimestamp(record.unix_seconds, UTC)
    return begun.strftime("%Y-%m-%d %H:%M:%S UTC")


def _png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()
