# For machines with an NVIDIA GPU. Nobody has built this image yet; see docs/train.md.
#
#   docker build -t rawkd_mm .
#   docker run --gpus all --shm-size 8g -it -v $PWD/data:/rawkd_mm/data rawkd_mm
#
# The toolkit and not only the runtime: MMCV's operators are compiled for CUDA.
FROM nvidia/cuda:13.0.1-cudnn-devel-ubuntu24.04

RUN apt-get update && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends \
        python3.12 python3.12-dev python3.12-venv g++ git \
    && rm -rf /var/lib/apt/lists/*

WORKDIR /rawkd_mm
COPY . .
# What the operators are compiled for, as no GPU is there while this builds: 9.0 is an H100 or H200, 8.9 an
# RTX 4090, 8.6 an RTX 3090, 8.0 an A100.
ARG TORCH_CUDA_ARCH_LIST="8.0 8.6 8.9 9.0"
RUN XDG_CACHE_HOME=/tmp/cache FORCE_CUDA=1 python3.12 tools/dev/setup_env.py test && rm -rf /tmp/cache
ENV PATH=/rawkd_mm/.venv/bin:$PATH
RUN rawkd --version
CMD ["bash"]
