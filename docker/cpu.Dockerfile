# Both backends on a CPU:
#   docker build --file docker/cpu.Dockerfile --tag sacref .
#   docker run --rm --volume "$PWD/runs:/sacref/runs" sacref train --backend jax --env HalfCheetah-v5 --steps 35000 --run-dir runs/cheetah
FROM python:3.12.11-slim-bookworm

# make runs the README's commands; MuJoCo draws videos by OSMesa.
# hadolint ignore=DL3008
RUN apt-get update \
 && apt-get install --yes --no-install-recommends libosmesa6 make \
 && rm -rf /var/lib/apt/lists/*

# PyTorch's builds without CUDA are not on PyPI.
ENV PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu \
    PIP_NO_CACHE_DIR=1

WORKDIR /sacref
COPY . .
RUN pip install -e '.[all]' --constraint constraints.txt

ENTRYPOINT ["sacref"]
CMD ["doctor"]
