# sleep-trl on NVIDIA GPUs, with vLLM. From the repository's root:
#
#     docker build -f docker/cuda.Dockerfile -t sleep-trl:cuda .
#     docker run --rm --gpus all --ipc host -v "$PWD/runs:/work/runs" sleep-trl:cuda doctor
#
# The wheels of torch and vLLM bring their CUDA libraries; the image needs only the driver of the host (NVIDIA Container
# Toolkit) and a compiler, for Triton. Not linted, built or run yet.
FROM python:3.11-slim

# The compiler may be any version, so that security fixes arrive.
# hadolint ignore=DL3008
RUN apt-get update && apt-get install -y --no-install-recommends gcc libc6-dev \
    && rm -rf /var/lib/apt/lists/*
RUN useradd --create-home sleep && mkdir /work && chown sleep /work
COPY . /src
RUN pip install --no-cache-dir -c /src/sleep_trl/doctor/constraints.txt '/src[vllm,report,serve,gguf]' \
    && rm -r /src

ENV NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
USER sleep
WORKDIR /work
ENTRYPOINT ["sleep-trl"]
CMD ["--help"]
