# The project on a GPU machine, as a user without privileges.
#   docker build -t dfdc .
#   docker run --gpus all --ipc=host -v /data:/data -v "$PWD/weights:/app/weights" dfdc \
#       ./predict_submission.sh /data/test_videos /data/submission.csv
# What is mounted must be readable, and for results writable, by user 10001, or add: --user "$(id -u)".
# The base brings CUDA and the PyTorch of constraints.txt; change both together.
FROM pytorch/pytorch:2.14.1-cuda13.0-cudnn9-runtime

RUN apt-get update \
    && DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends curl make python3-venv \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --create-home --uid 10001 dfdc
WORKDIR /app
COPY requirements.txt constraints.txt ./
RUN python3 -m venv --system-site-packages .venv \
    && .venv/bin/python -m pip install --no-cache-dir -r requirements.txt -c constraints.txt \
    && touch .venv/installed
ENV PATH=/app/.venv/bin:$PATH NO_ALBUMENTATIONS_UPDATE=1 HOME=/tmp
COPY . .
RUN mkdir -p logs demo/out && chown -R dfdc logs demo/out weights
USER dfdc
CMD ["./predict_submission.sh", "--help"]
