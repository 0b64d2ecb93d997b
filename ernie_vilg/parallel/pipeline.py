"""The list of layers, cut into stages.

Source: DeepSpeed's PipelineModule (https://github.com/deepspeedai/DeepSpeed).
"""

import contextlib
import io

from deepspeed.pipe import LayerSpec, PipelineModule
from deepspeed.runtime.pipe.topology import PipeModelDataParallelTopology

from ernie_vilg.config.model import ModelConfig
from ernie_vilg.model.layers import ParallelLayers
from ernie_vilg.model.transformer import layer_classes
from ernie_vilg.parallel.engine import PipelineLoss
from ernie_vilg.parallel.groups import Groups


def build_stage(
    config: ModelConfig, layers: ParallelLayers, groups: Groups, loss: PipelineLoss
) -> PipelineModule:
    """Return this rank's stage. Only its own layers are built.

    Blocks are dealt out evenly; the embedding goes with the first, the head with the last.
    """
    topology = PipeModelDataParallelTopology(
        num_pp=groups.pipeline_size, num_mp=groups.tensor_size, num_dp=groups.data_size
    )
    with contextlib.redirect_stdout(io.StringIO()):  # DeepSpeed prints its partition
        return PipelineModule(
            layers=[LayerSpec(cls, config, layers) for cls in layer_classes(config)],
            topology=topology,
            loss_fn=loss,
            partition_method="type:^Block$",
        )
