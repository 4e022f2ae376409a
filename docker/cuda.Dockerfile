# Both backends on NVIDIA GPUs; the host has the driver and the NVIDIA Container Toolkit:
#   docker build --file docker/cuda.Dockerfile --tag sacref-cuda .
#   docker run --rm --gpus all --volume "$PWD/runs:/sacref/runs" sacref-cuda train --env HalfCheetah-v5 --steps 35000 --run-dir runs/cheetah
FROM python:3.12.11-slim-bookworm

# make runs the README's commands; MuJoCo draws videos by EGL.
# hadolint ignore=DL3008
RUN apt-get update \
 && apt-get install --yes --no-install-recommends libegl1 libgl1 make \
 && rm -rf /var/lib/apt/lists/*

ENV NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,graphics,utility \
    PIP_NO_CACHE_DIR=1

WORKDIR /sacref
COPY . .
# The wheels bring CUDA. cuda12 for drivers older than 580, with PyTorch's builds for CUDA 12: PIP_EXTRA_INDEX_URL.
ARG CUDA=cuda13
RUN pip install torch "jax[${CUDA}]" --constraint constraints.txt \
 && pip install -e '.[all]' --constraint constraints.txt

ENTRYPOINT ["sacref"]
CMD ["doctor"]
