# docker build --target training -t deepspeech-training .       train, evaluate, tune: CUDA, Jupyter on port 8888
# docker build --target serving -t deepspeech-serving .         server.py on a CPU, port 8888
#
# docs/deployment.md says how they are run. BuildKit builds only the stages that the target needs. .ci/dockerfile runs what can be
# run here without Docker.

# NVIDIA drivers before 580, and GPUs before Turing, need --build-arg CUDA=12.6
ARG CUDA=13.0

# The one package that comes as source, for KenLM's binary models. The compiler stays in this stage. The older Debian, and the
# Python of both images below: its wheel then loads in both.
FROM python:3.12-bookworm AS kenlm
WORKDIR /wheels
RUN --mount=type=cache,target=/root/.cache/pip \
    python -m pip wheel --no-deps --wheel-dir /wheels kenlm==0.3.0


# The torch of this image is the one in requirements.txt, so that pip leaves it as it is.
FROM pytorch/pytorch:2.13.0-cuda${CUDA}-cudnn9-runtime AS training
ARG UID=1000
# The base image's Python is Ubuntu's, which pip leaves alone unless told that this machine is for nothing else.
ENV PIP_BREAK_SYSTEM_PACKAGES=1 \
    PYTHONUNBUFFERED=1
# Ubuntu has a user 1000 already; the same number on both sides is what makes mounted folders writable.
RUN useradd --create-home --shell /bin/bash --non-unique --uid "$UID" asr \
    && mkdir -p /workspace/data /workspace/notebooks /workspace/deepspeech.pytorch \
    && chown -R asr /workspace
WORKDIR /workspace/deepspeech.pytorch
COPY --chown=asr requirements*.txt ./
RUN --mount=type=cache,target=/root/.cache/pip \
    --mount=type=bind,from=kenlm,source=/wheels,target=/wheels \
    python -m pip install --find-links /wheels kenlm==0.3.0 notebook==7.6.5 tensorboard==2.21.0 \
        -r requirements.txt -r requirements-media.txt -r requirements-graphs.txt -r requirements-tuning.txt \
        -r requirements-export.txt
# Had a requirement brought another torch, it would be seen here and not at the first training.
RUN python -c "import torch; assert torch.version.cuda, f'torch {torch.__version__} has no CUDA'"
COPY --chown=asr . .
USER asr
VOLUME /workspace/data
EXPOSE 8888
CMD ["jupyter", "notebook", "--ip=0.0.0.0", "--port=8888", "--no-browser", "--ServerApp.root_dir=/workspace"]


FROM python:3.12-slim-bookworm AS serving
# What is compiled, and a language model's cache, go where the user may write, and where a volume keeps them.
ENV NUMBA_CACHE_DIR=/var/cache/asr/numba \
    XDG_CACHE_HOME=/var/cache/asr \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1
RUN useradd --system --no-create-home --shell /usr/sbin/nologin --uid 10001 asr \
    && mkdir -p /models /var/cache/asr \
    && chown asr /var/cache/asr
WORKDIR /app
COPY requirements.txt requirements-media.txt requirements-server.txt ./
# By itself, from its own index: the CPU build is a tenth of the one with CUDA, and the layer outlives changes to the others.
RUN --mount=type=cache,target=/root/.cache/pip \
    python -m pip install --index-url https://download.pytorch.org/whl/cpu torch==2.13.0
RUN --mount=type=cache,target=/root/.cache/pip \
    --mount=type=bind,from=kenlm,source=/wheels,target=/wheels \
    python -m pip install --find-links /wheels kenlm==0.3.0 \
        -r requirements.txt -r requirements-media.txt -r requirements-server.txt
COPY . .
# A number, by which Kubernetes can tell that it is not root.
USER 10001
EXPOSE 8888
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=15s --timeout=5s --start-period=120s --retries=3 \
    CMD ["python", "-c", "import http.client as h; c = h.HTTPConnection('127.0.0.1', 8888, timeout=4); c.request('GET', '/health/ready'); raise SystemExit(c.getresponse().status != 200)"]
CMD ["python", "server.py", "--host", "0.0.0.0", "--port", "8888", "--model-path", "/models/deepspeech_final.pth"]
