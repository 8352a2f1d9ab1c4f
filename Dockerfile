# docker build -t dfdc . && docker run --gpus all --ipc=host -v /data:/data -v $PWD/weights:/app/weights dfdc \
#     ./predict_submission.sh /data/test_videos /data/submission.csv
# The base brings Python and CUDA; PyTorch comes from constraints.txt, as everywhere.
FROM pytorch/pytorch:2.9.1-cuda13.0-cudnn9-runtime

RUN apt-get update && apt-get install --yes --no-install-recommends curl make && rm -rf /var/lib/apt/lists/* \
    && useradd --create-home --uid 10001 dfdc
WORKDIR /app
COPY requirements.txt constraints.txt ./
RUN python -m venv .venv && .venv/bin/pip install --no-cache-dir -r requirements.txt -c constraints.txt \
    && touch .venv/installed
COPY --chown=dfdc . .
ENV PATH=/app/.venv/bin:$PATH NO_ALBUMENTATIONS_UPDATE=1
RUN mkdir -p logs demo/out && chown dfdc . logs demo demo/out weights
USER dfdc
CMD ["./predict_submission.sh", "--help"]
