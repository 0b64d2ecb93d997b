# A slim image for CPUs: data pipelines, checks of a run's settings, small models.
#   docker build -f docker/cpu.Dockerfile --build-arg REVISION="$(git rev-parse HEAD)" -t ernie_vilg:cpu .
#   docker run --rm --shm-size=2g -v "$PWD/outputs:/ernie_vilg/outputs" ernie_vilg:cpu draw_shapes output_dir=outputs/pairs
# For the same base in each build, name it by the digest that `docker pull` prints:
#   --build-arg BASE=python:3.11.14-slim-bookworm@sha256:...
ARG BASE=python:3.11.14-slim-bookworm

FROM ${BASE} AS wheel
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_NO_CACHE_DIR=1
WORKDIR /source
COPY . .
RUN pip install --constraint constraints.txt pip setuptools wheel && \
    pip wheel --no-deps --no-build-isolation --wheel-dir /wheels .

FROM ${BASE}
# CPU builds of torch. PyPI's builds are for CUDA, and several GB larger.
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
# Optional packages; all are: remote,curation,scorers,ocr,translation,ray,submitit,tensorboard
ARG EXTRAS=remote,curation

ENV DS_BUILD_OPS=0 \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_NO_CACHE_DIR=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1

RUN useradd --create-home --uid 10001 trainer && \
    install --directory --owner=trainer /ernie_vilg /ernie_vilg/outputs
WORKDIR /ernie_vilg

# The packages come before the code, so that a change of the code does not install torch again.
COPY constraints.txt ./
RUN pip install --constraint constraints.txt pip setuptools wheel && \
    pip install --index-url "${TORCH_INDEX}" "torch==$(sed -n 's/^torch==//p' constraints.txt)"

# That of ernie_vilg/__init__.py: with another one the wheel is not found.
ARG VERSION=0.1.0
COPY --from=wheel /wheels /wheels
RUN pip install --constraint constraints.txt --build-constraint constraints.txt \
        "/wheels/ernie_vilg-${VERSION}-py3-none-any.whl[${EXTRAS}]"

# The commit, which the build cannot see.
ARG REVISION=unknown
LABEL org.opencontainers.image.title="ernie-vilg" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"

USER 10001
# A run that hangs ends itself (docs/watching.md), so this only checks that Python works.
HEALTHCHECK --interval=60s --timeout=30s --start-period=60s \
    CMD ["python", "-c", "import ernie_vilg.config.pretrain"]
ENTRYPOINT ["ernie-vilg"]
CMD ["--help"]
