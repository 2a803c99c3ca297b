# The command with the CPU-only torch:
#     docker build --build-arg VERSION=0.1.0 -t promptbench .
#     docker run --rm -v "$PWD":/work promptbench run --method coop cocoop --protocol base2new
FROM python:3.11-slim
ARG VERSION
ENV SETUPTOOLS_SCM_PRETEND_VERSION_FOR_PROMPTBENCH_CLIP=$VERSION
RUN pip install --no-cache-dir torch torchvision --index-url https://download.pytorch.org/whl/cpu
COPY pyproject.toml README.md LICENSE /source/
COPY promptbench /source/promptbench
COPY methods /source/methods
COPY datasets /source/datasets
COPY benchmarks /source/benchmarks
COPY results/published /source/results/published
RUN pip install --no-cache-dir '/source[plots]'
WORKDIR /work
ENTRYPOINT ["promptbench"]
