# The programs in an image, for CPU or for NVIDIA GPUs; from the repository's root:
#   docker build -t torchrec-mt .
#   docker build -t torchrec-mt --build-arg VARIANT=cuda .
# The image has no ENTRYPOINT: TorchX gives the whole command, and on plain Docker an entrypoint would swallow it.
# Never built where it was written (no Docker daemon there): docs/operations.md says what was checked.
ARG PYTHON=3.11-slim-bookworm

FROM python:${PYTHON} AS build
ARG VARIANT=cpu
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1
WORKDIR /build
RUN python -m venv /opt/venv
ENV PATH=/opt/venv/bin:$PATH
COPY requirements/ requirements/
# The CPU build of torch lies on PyTorch's own index only; PyPI's would bring gigabytes of CUDA.
RUN case "$VARIANT" in \
        cpu) export PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu ;; \
        cuda) ;; \
        *) echo "VARIANT=$VARIANT: must be cpu or cuda" >&2; exit 2 ;; \
    esac; \
    pip install -r "requirements/$VARIANT.txt"
COPY pyproject.toml README.md LICENSE ./
COPY torchrec_mt/ torchrec_mt/
RUN pip install --no-deps --no-build-isolation . && pip check && pip uninstall --yes pip

FROM python:${PYTHON}
# implicit (the ALS and BPR baselines) links to the system's OpenMP.
RUN apt-get update && apt-get install --yes --no-install-recommends libgomp1 && rm -rf /var/lib/apt/lists/*
# Mounted folders must be writable for user 1000: datasets go to data/, runs to runs/.
RUN useradd --uid 1000 --create-home trainer && install -d -o trainer -g trainer /workspace /workspace/data /workspace/runs
COPY --from=build /opt/venv /opt/venv
WORKDIR /workspace
COPY --chown=trainer:trainer launch/ launch/
# For the NVIDIA container runtime, which shows a container its GPUs and no more than it is asked for.
ENV PATH=/opt/venv/bin:$PATH PYTHONUNBUFFERED=1 NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
USER trainer
CMD ["torchrec-mt", "--help"]
