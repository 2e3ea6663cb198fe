# The stage image: what plans, trains, evaluates and serves.
#   docker build -f docker/stage.Dockerfile -t REGISTRY/plumbline:0.1.0 .
# For GPUs name the index of torch's CUDA builds that your driver supports:
#   --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cu130
FROM python:3.11-slim
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
# KubeRay's probes call wget.
RUN apt-get update && apt-get install --yes --no-install-recommends wget && rm -rf /var/lib/apt/lists/*
WORKDIR /source
# Into /usr/local and no virtual environment: KubeRay may start Ray through a login shell, which resets PATH.
# constraints.txt says which torch, the index says which build of it: 2.13.0+cpu and 2.13.0+cu130 both are 2.13.0.
COPY constraints.txt ./
RUN pip install --upgrade "pip==26.3" && \
    pip install --constraint constraints.txt --extra-index-url "$TORCH_INDEX" torch
COPY pyproject.toml README.md LICENSE ./
COPY pipelines pipelines
COPY operator operator
RUN pip install --constraint constraints.txt --extra-index-url "$TORCH_INDEX" ".[s3,qlora,mlflow,tensorboard,wandb,harness]"

RUN useradd --uid 1000 --create-home plumbline
ENV HOME=/home/plumbline PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
WORKDIR /home/plumbline
USER 1000:1000
