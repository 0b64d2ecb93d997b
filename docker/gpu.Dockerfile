# The image for NVIDIA GPUs, with PyTorch, NCCL, TransformerEngine and FlashAttention as NVIDIA builds
# and tests them together.
#   docker build -f docker/gpu.Dockerfile -t ernie_vilg:gpu .
#   docker run --rm --gpus all --ipc=host --ulimit memlock=-1 -v "$PWD/outputs:/ernie_vilg/outputs" \
#       ernie_vilg:gpu deepspeed --num_gpus 8 launch/pretrain.py experiment=base_300m
# For the same base in each build, name it by the digest that `docker pull` prints:
#   --build-arg BASE=nvcr.io/nvidia/pytorch:26.05-py3@sha256:...
ARG BASE=nvcr.io/nvidia/pytorch:26.05-py3
FROM ${BASE}
# Optional packages, such as remote,ray for encoding on a Ray cluster.
ARG EXTRAS=remote

ENV DS_BUILD_OPS=0 \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_NO_CACHE_DIR=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1

RUN useradd --create-home --uid 10001 trainer && \
    install --directory --owner=trainer /ernie_vilg /ernie_vilg/outputs
WORKDIR /ernie_vilg

COPY . .
# NVIDIA's constraints (PIP_CONSTRAINT of the base) pin torch and its libraries; ours pin only the
# packages that decide a run's layout. The last lines fail if torch was replaced.
RUN python -c 'import torch; print(torch.__version__)' > /tmp/torch && \
    grep -E '^(deepspeed|megatron-core|webdataset)==' constraints.txt > /tmp/constraints.txt && \
    pip install --constraint /tmp/constraints.txt --editable ".[${EXTRAS}]" && \
    python -c 'import torch; print(torch.__version__)' > /tmp/torch_after && \
    diff /tmp/torch /tmp/torch_after

USER 10001
# A run that hangs ends itself (docs/watching.md), so this only checks that the GPUs answer.
HEALTHCHECK --interval=60s --timeout=30s --start-period=60s CMD ["nvidia-smi", "--list-gpus"]
ENTRYPOINT ["/ernie_vilg/docker/entrypoint.sh"]
CMD ["help"]
