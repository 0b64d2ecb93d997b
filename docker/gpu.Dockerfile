# The image for NVIDIA GPUs, with PyTorch, NCCL, TransformerEngine and FlashAttention as NVIDIA builds
# and tests them together.
#   docker build -f docker/gpu.Dockerfile --build-arg REVISION="$(git rev-parse HEAD)" -t ernie_vilg:gpu .
#   docker run --rm --gpus all --ipc=host --ulimit memlock=-1 -v "$PWD/outputs:/ernie_vilg/outputs" \
#       --entrypoint deepspeed ernie_vilg:gpu --num_gpus 8 --module launch.pretrain experiment=base_300m
# For the same bases in each build, name them by the digests that `docker pull` prints:
#   --build-arg BASE=nvcr.io/nvidia/pytorch:26.05-py3@sha256:...
ARG BASE=nvcr.io/nvidia/pytorch:26.05-py3
ARG WHEEL_BASE=python:3.11.14-slim-bookworm

FROM ${WHEEL_BASE} AS wheel
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_NO_CACHE_DIR=1
WORKDIR /source
COPY . .
RUN pip install --constraint constraints.txt pip setuptools wheel && \
    pip wheel --no-deps --no-build-isolation --wheel-dir /wheels .

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

COPY constraints.txt ./
# That of ernie_vilg/__init__.py: with another one the wheel is not found.
ARG VERSION=0.1.0
COPY --from=wheel /wheels /wheels
# NVIDIA's constraints (PIP_CONSTRAINT of the base) pin torch and its libraries; ours pin only the
# packages that decide a run's layout. The last lines fail if torch was replaced.
RUN python -c 'import torch; print(torch.__version__)' > /tmp/torch && \
    grep -E '^(deepspeed|megatron-core|webdataset)==' constraints.txt > /tmp/constraints.txt && \
    pip install --constraint /tmp/constraints.txt \
        "/wheels/ernie_vilg-${VERSION}-py3-none-any.whl[${EXTRAS}]" && \
    python -c 'import torch; print(torch.__version__)' > /tmp/torch_after && \
    diff /tmp/torch /tmp/torch_after

# The commit, which the build cannot see.
ARG REVISION=unknown
LABEL org.opencontainers.image.title="ernie-vilg" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"

USER 10001
# A run that hangs ends itself (docs/watching.md), so this only checks that the GPUs answer.
HEALTHCHECK --interval=60s --timeout=30s --start-period=60s CMD ["nvidia-smi", "--list-gpus"]
ENTRYPOINT ["ernie-vilg"]
CMD ["--help"]
