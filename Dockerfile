# Images of a pipeq worker (the client and the command line are in them too). Two targets:
#
#   docker build --target cpu -t pipeq:cpu .
#   docker build --target cuda -t pipeq:cuda .       needs only NVIDIA's driver on the host: torch brings CUDA
#
# PyAV and Pillow bring their codecs: no ffmpeg is installed.

ARG PYTHON_IMAGE=python:3.11-slim

# -- build: a virtual environment in /opt/pipeq, pinned by constraints.txt --------------------------------------------
FROM ${PYTHON_IMAGE} AS source
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore
WORKDIR /src
RUN python -m venv /opt/pipeq
ENV PATH=/opt/pipeq/bin:$PATH
COPY pyproject.toml constraints.txt README.md LICENSE ./
# Packages without code, so that a change of code does not reinstall everything.
RUN mkdir -p producers/pipeq worker/pipeq_worker && touch producers/pipeq/__init__.py worker/pipeq_worker/__init__.py
# 1: also what reads text in images, for document-question-answering.
ARG WITH_TESSERACT=0
RUN if [ "$WITH_TESSERACT" = 1 ]; then pip install --no-cache-dir -c constraints.txt pytesseract==0.3.13; fi

FROM source AS build-cpu
# An index of CPU-only torch wheels. Without it, torch is the package index's own build: on x86-64 with CUDA, and large.
ARG TORCH_CPU_INDEX_URL=""
# Without its dependencies, which come from the usual index in the versions pinned here.
RUN if [ -n "$TORCH_CPU_INDEX_URL" ]; then \
      pip install --no-cache-dir --no-deps --index-url "$TORCH_CPU_INDEX_URL" -c constraints.txt torch; \
    fi
RUN pip install --no-cache-dir -c constraints.txt ".[worker]"
COPY producers producers
COPY worker worker
RUN pip install --no-cache-dir --no-deps --force-reinstall .

FROM source AS build-cuda
RUN pip install --no-cache-dir -c constraints.txt ".[worker]"
COPY producers producers
COPY worker worker
RUN pip install --no-cache-dir --no-deps --force-reinstall .

# -- run --------------------------------------------------------------------------------------------------------------
FROM ${PYTHON_IMAGE} AS runtime
ARG WITH_TESSERACT=0
# The base image's Debian release pins it well enough.
# hadolint ignore=DL3008
RUN if [ "$WITH_TESSERACT" = 1 ]; then \
      apt-get update && \
      apt-get install --yes --no-install-recommends tesseract-ocr && \
      rm -rf /var/lib/apt/lists/*; \
    fi
# By number, so that Kubernetes can see that it is not root.
RUN useradd --create-home --uid 10001 pipeq && mkdir /models && chown 10001:10001 /models
ENV PATH=/opt/pipeq/bin:$PATH HF_HOME=/models PYTHONUNBUFFERED=1
USER 10001
WORKDIR /home/pipeq
# Models, fetched once.
VOLUME /models
# No HEALTHCHECK: whoever sets `metrics.port` knows where /livez is (docs/metrics.md, docker-compose.yml).
ENTRYPOINT ["pipeq"]
CMD ["worker", "--config", "/etc/pipeq/pipelines.toml"]

FROM runtime AS cuda
COPY --from=build-cuda /opt/pipeq /opt/pipeq

# The last one is what `docker build` without --target builds.
FROM runtime AS cpu
COPY --from=build-cpu /opt/pipeq /opt/pipeq
