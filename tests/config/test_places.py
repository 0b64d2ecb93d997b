"""Settings of local files and folders refuse URLs and commands before anything starts."""

import pytest

from ernie_vilg.errors import InputError
from launch.support.composition import compose_program

BUILD = ("source=s", "output_dir=o", "image_size=4")
ENCODE = ("shards=s", "text_tokenizer_dir=t", "image_tokenizer_dir=i", "output_dir=o")
EVALUATE = ("weights=w", "pairs=p", "output_dir=o")
RUN = ("experiment=quickstart",)
PLAN = (*RUN, "num_gpus=8", "gpu=h100-80gb")
REQUIRED = {
    "audit_shards": ("image_shards=i", "token_shards=t", "output_dir=o"),
    "build_shards": BUILD,
    "caption": ("weights=w", "images=i", "output=o"),
    "draw_shapes": ("output_dir=o",),
    "drill": RUN,
    "encode_shards": ENCODE,
    "evaluate": EVALUATE,
    "evaluate_image_tokenizer": ("weights=w", "shards=s", "output_dir=o"),
    "explain_step": ("run=r", "step=1"),
    "export": ("run=r", "output_dir=o"),
    "generate": ("weights=w", "prompts=[a]", "output_dir=o"),
    "hold_out_variants": ("source=s", "output_dir=o"),
    "main_job": ("job=quickstart",),
    "plan": PLAN,
    "pretrain": RUN,
    "reshard": ("run=r",),
    "report": (
        "title=t", "pretrain_run=p", "tokenizer_run=t", "evaluation=e", "stages=s", "output=o",
        "command=c",
    ),
    "soak": RUN,
    "submit": RUN,
    "train_image_tokenizer": ("image_tokenizer=quickstart", "shards=s", "run_dir=r"),
    "train_text_tokenizer": ("shards=s", "output_dir=o"),
}  # fmt: skip
"""Required options of each program."""

OUTPUTS = (
    ("audit_shards", "output_dir"),
    ("build_shards", "output_dir"),
    ("caption", "output"),
    ("draw_shapes", "output_dir"),
    ("drill", "drill_dir"),
    ("drill", "run_dir"),
    ("encode_shards", "output_dir"),
    ("evaluate", "output_dir"),
    ("evaluate_image_tokenizer", "output_dir"),
    ("explain_step", "output"),
    ("explain_step", "cache_dir"),
    ("export", "output_dir"),
    ("generate", "output_dir"),
    ("hold_out_variants", "output_dir"),
    ("main_job", "job.output_dir"),
    ("plan", "plan_dir"),
    ("pretrain", "run_dir"),
    ("pretrain", "data.loader.cache_dir"),
    ("report", "output"),
    ("reshard", "run"),
    ("soak", "drill_dir"),
    ("submit", "run_dir"),
    ("train_image_tokenizer", "run_dir"),
    ("train_image_tokenizer", "loader.cache_dir"),
    ("train_text_tokenizer", "output_dir"),
)
INPUTS = (
    ("audit_shards", "image_shards"),
    ("audit_shards", "token_shards"),
    ("audit_shards", "text_tokenizer_dir"),
    ("audit_shards", "image_tokenizer_dir"),
    ("caption", "weights"),
    ("caption", "images"),
    ("encode_shards", "shards"),
    ("encode_shards", "text_tokenizer_dir"),
    ("encode_shards", "image_tokenizer_dir"),
    ("encode_shards", "codes_from"),
    ("evaluate", "weights"),
    ("evaluate", "pairs"),
    ("evaluate_image_tokenizer", "weights"),
    ("evaluate_image_tokenizer", "shards"),
    ("evaluate_image_tokenizer", "vgg16_weights"),
    ("explain_step", "run"),
    ("explain_step", "text_tokenizer_dir"),
    ("explain_step", "image_tokenizer_dir"),
    ("export", "run"),
    ("generate", "weights"),
    ("hold_out_variants", "source"),
    ("pretrain", "data.text_tokenizer"),
    ("pretrain", "data.image_tokenizer"),
    ("pretrain", "samples.pairs"),
    ("pretrain", "health.pairs"),
    ("report", "pretrain_run"),
    ("report", "tokenizer_run"),
    ("report", "evaluation"),
    ("report", "stages"),
    ("train_text_tokenizer", "shards"),
)


def refusal(program: str, setting: str, value: str) -> str:
    # Hydra needs quotes for a value with a colon.
    words = [word for word in REQUIRED[program] if not word.startswith(f"{setting}=")]
    with pytest.raises(InputError) as caught:
        compose_program(program, [*words, f'{setting}="{value}"'])
    return str(caught.value).partition("it refuses these settings: ")[2]


@pytest.mark.parametrize("value", ["s3://bucket/x", "https://user:secret@host/x", "pipe:rm secret"])
@pytest.mark.parametrize(("program", "setting"), [*OUTPUTS, *INPUTS])
def test_a_url_is_no_local_place(program: str, setting: str, value: str) -> None:
    message = refusal(program, setting, value)

    name = setting.removeprefix("data.loader.").removeprefix("loader.")
    assert f"{name}={value.partition(':')[0]}:...: must be a file or folder of" in message
    assert "secret" not in message


@pytest.mark.parametrize(("program", "setting"), OUTPUTS)
def test_an_empty_or_broken_name_is_no_place_to_write(program: str, setting: str) -> None:
    name = setting.removeprefix("data.")

    assert refusal(program, setting, "") == f"{name} is empty: name a place to write to"
    assert refusal(program, setting, "a\nb").startswith(f"{name} has a control character")
    assert refusal(program, setting, "a\udcff").startswith(f"{name} is not UTF-8")
