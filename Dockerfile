# The server of the shipped model on a CPU:
#   docker build -t dslstm . && docker run --rm -p 127.0.0.1:8000:8000 dslstm
FROM python:3.11-slim-bookworm AS build

WORKDIR /src
# The CPU build of torch takes a fifth of the space of the default one
RUN pip install --no-cache-dir --prefix=/install \
    --index-url https://download.pytorch.org/whl/cpu "torch==2.11.*" "torchaudio==2.11.*"
COPY setup.py README.md ./
COPY recipes recipes
COPY hparams hparams
COPY speechbrain_dslstm speechbrain_dslstm
# hadolint ignore=DL3013
RUN PYTHONPATH=/install/lib/python3.11/site-packages \
    pip install --no-cache-dir --prefix=/install ".[serve]"

FROM python:3.11-slim-bookworm

COPY --from=build /install /usr/local
RUN useradd --create-home --home-dir /srv/dslstm --uid 10001 dslstm
USER 10001
WORKDIR /srv/dslstm
ENV NUMBA_CACHE_DIR=/srv/dslstm/.cache/numba \
    HF_HUB_OFFLINE=1
EXPOSE 8000
HEALTHCHECK --interval=30s --timeout=5s --start-period=60s CMD \
    ["python", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:8000/health', timeout=4)"]
# Set DSLSTM_TOKEN where others can reach the port
ENTRYPOINT ["dslstm"]
CMD ["serve", "--host", "0.0.0.0"]
