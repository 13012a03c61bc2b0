# direct-anneal with the versions of constraints.txt.
#   docker build -t direct-anneal .
#   docker run --rm -v "$PWD:/work" direct-anneal doctor
# For a GPU: docker build --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cu126 -t direct-anneal .
# and docker run --gpus all ... --device cuda
FROM python:3.12-slim

ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PYTHONUNBUFFERED=1

WORKDIR /opt/direct-anneal
COPY constraints.txt pyproject.toml README.md LICENSE ./
# torch alone and first: the index decides which build of it comes.
RUN pip install --index-url "$TORCH_INDEX" --extra-index-url https://pypi.org/simple -c constraints.txt torch
COPY src ./src
RUN pip install -c constraints.txt ".[compare]"

RUN useradd --create-home annealer
USER annealer
WORKDIR /work
ENTRYPOINT ["direct-anneal"]
CMD ["--help"]
