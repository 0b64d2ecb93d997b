"""One module knows the attributes of DeepSpeed's optimizers."""

import re
from pathlib import Path

from ernie_vilg.parallel.engine import zero_shards

ROOT = Path(__file__).parents[3]
PACKAGES = ("ernie_vilg", "launch", "data_pipelines", "benchmarks")
ATTRIBUTES = re.compile(
    r"\b(bf16_groups|bit16_groups|fp16_groups|fp32_\w*groups\w*|single_partition_of_fp32_groups"
    r"|fp32_groups_flat_partition|averaged_gradients|_hp_\w+|_global_grad_norm|update_lp_params"
    r"|ds_id|ds_tensor|ds_numel|ds_persist|partition_numel|cpu_offload|loss_scaler"
    r"|DeepSpeedZeroOptimizer\w*)\b"
)


def test_no_other_module_names_attributes_of_the_zero_optimizers() -> None:
    files = [file for package in PACKAGES for file in sorted((ROOT / package).rglob("*.py"))]

    naming = [file for file in files if ATTRIBUTES.search(file.read_text())]

    assert naming == [Path(zero_shards.__file__)]
