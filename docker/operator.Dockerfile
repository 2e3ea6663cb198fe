# The operator: neither Ray nor torch.
#   docker build -f docker/operator.Dockerfile -t REGISTRY/plumbline-operator:0.1.0 .
FROM python:3.11-slim AS build
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN python -m venv /opt/plumbline
ENV PATH=/opt/plumbline/bin:$PATH
WORKDIR /source
# `--group` came with pip 25.1. Dependencies first: they change less often than the code.
COPY pyproject.toml constraints.txt ./
RUN pip install --upgrade "pip==26.3" && pip install --constraint constraints.txt --group operator
COPY README.md LICENSE ./
COPY pipelines pipelines
COPY operator operator
RUN pip install --no-deps .

FROM python:3.11-slim
COPY --from=build /opt/plumbline /opt/plumbline
ENV PATH=/opt/plumbline/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
# A number, so that `runAsNonRoot` can be checked.
USER 65532:65532
EXPOSE 8080
ENTRYPOINT ["python", "-m", "plumbline_operator"]
