# A slim image for CPUs: data pipelines, checks of a run's settings, small models.
#   docker build -f docker/cpu.Dockerfile -t ernie_vilg:cpu .
#   docker run --rm --shm-size=2g -v "$PWD/outputs:/ernie_vilg/outputs" ernie_vilg:cpu draw_shapes output_dir=outputs/pairs
# For the same base in each build, name it by the digest that `docker pull` prints:
#   --build-arg BASE=python:3.11.14-slim-bookworm@sha256:...
ARG BASE=python:3.11.14-slim-bookworm
FROM ${BASE}
# CPU builds of torch. PyPI's builds are for CUDA, and several GB larger.
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
# Optional packages; all are: remote,curation,scorers,ocr,translation,ray,tensorboard
ARG EXTRAS=remote,curation

ENV DS_BUILD_OPS=0 \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_NO_CACHE_DIR=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1

RUN useradd --create-home --uid 10001 trainer && \
    install --directory --owner=trainer /ernie_vilg /ernie_vilg/outputs
WORKDIR /ernie_vilg

COPY . .
RUN pip install --constraint constraints.txt pip setuptools wheel && \
    pip install --index-url "${TORCH_INDEX}" "torch==$(sed -n 's/^torch==//p' constraints.txt)" && \
    pip install --constraint constraints.txt --build-constraint constraints.txt --editable ".[${EXTRAS}]"

USER 10001
# A run that hangs ends itself (docs/watching.md), so this only checks that Python works.
HEALTHCHECK --interval=60s --timeout=30s --start-period=60s \
    CMD ["python", "-c", "import ernie_vilg.config.pretrain"]
ENTRYPOINT ["/ernie_vilg/docker/entrypoint.sh"]
CMD ["help"]
