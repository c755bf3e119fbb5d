# sleep-trl on a CPU. From the repository's root:
#
#     docker build -f docker/cpu.Dockerfile -t sleep-trl:cpu .
#     docker run --rm -v "$PWD/runs:/work/runs" sleep-trl:cpu demo
#
# Not linted, built or run yet.
FROM python:3.11-slim

RUN useradd --create-home sleep && mkdir /work && chown sleep /work
COPY . /src
RUN pip install --no-cache-dir --extra-index-url https://download.pytorch.org/whl/cpu \
        -c /src/sleep_trl/doctor/constraints.txt '/src[report,serve,gguf]' \
    && rm -r /src

USER sleep
WORKDIR /work
ENTRYPOINT ["sleep-trl"]
CMD ["--help"]
