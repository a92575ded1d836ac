# One image for building datasets, training and serving:
#   docker build -t emu .
#   docker run --rm -p 8000:8000 -v "$PWD/runs:/work/runs" --shm-size 2g emu serve --model runs/tiny/model --host 0.0.0.0 --allow-anyone
#   docker run --rm --gpus all -v /data:/data --shm-size 16g emu train --data /data/mmc4 --out /data/run
FROM python:3.11-slim
COPY --from=ghcr.io/astral-sh/uv:0.9 /uv /usr/local/bin/uv
RUN apt-get update && apt-get install --yes --no-install-recommends g++ libgomp1 && rm -rf /var/lib/apt/lists/*
# Compiled here: users of the container cannot write beside the packages, and each start would compile them again.
ENV UV_SYSTEM_PYTHON=1 UV_NO_CACHE=1 UV_COMPILE_BYTECODE=1 RAY_ENABLE_UV_RUN_RUNTIME_ENV=0
WORKDIR /opt/emu
# The tested versions first: this layer is kept when only the code changes.
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY emu/__init__.py emu/__init__.py
RUN uv pip install --constraints constraints.txt --requirements pyproject.toml --extra all --extra s3
COPY schemas schemas
COPY pipelines pipelines
COPY emu emu
COPY jobs jobs
RUN uv pip install --no-deps .
RUN useradd --create-home emu && mkdir /work && chown emu /work
USER emu
WORKDIR /work
EXPOSE 8000
ENTRYPOINT ["emu"]
CMD ["--help"]
