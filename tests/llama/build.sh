#!/bin/sh
# Builds the real llama.cpp server for the tests, from the source that the PyPI package llama-cpp-python
# carries. Nothing else is fetched; the web page of the server is left out. Result: .llama/llama-server
set -eu
cd "$(dirname "$0")/../.."
version=0.3.36
test -x .llama/llama-server && exit 0
for tool in cmake g++ make; do
  command -v "$tool" >/dev/null || { echo "llama.cpp needs $tool: apt-get install cmake g++ make" >&2; exit 1; }
done
mkdir -p .llama/source
echo "llama.cpp: fetching the source (77 MB)"
${PYTHON:-.venv/bin/python} -m pip download --quiet --no-deps --no-binary llama-cpp-python --dest .llama/source "llama-cpp-python==$version"
tar -xzf ".llama/source/llama_cpp_python-$version.tar.gz" -C .llama/source "llama_cpp_python-$version/vendor/llama.cpp"
echo "llama.cpp: building (several minutes, once)"
# -O1 halves the compile time; the tests' model is tiny, so that the server's speed does not matter.
cmake -S ".llama/source/llama_cpp_python-$version/vendor/llama.cpp" -B .llama/build \
  -DCMAKE_BUILD_TYPE=Release -DCMAKE_CXX_FLAGS_RELEASE="-O1" -DCMAKE_C_FLAGS_RELEASE="-O2" \
  -DGGML_NATIVE=OFF -DBUILD_SHARED_LIBS=OFF -DLLAMA_CURL=OFF -DLLAMA_OPENSSL=OFF -DLLAMA_BUILD_UI=OFF \
  -DLLAMA_USE_PREBUILT_UI=OFF -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_EXAMPLES=OFF -DLLAMA_BUILD_APP=OFF \
  > .llama/cmake.log 2>&1 || { tail -20 .llama/cmake.log >&2; exit 1; }
nice cmake --build .llama/build --target llama-server --parallel "$(nproc)" > .llama/build.log 2>&1 \
  || { tail -20 .llama/build.log >&2; exit 1; }
mv .llama/build/bin/llama-server .llama/llama-server
rm -rf .llama/build .llama/source
echo "llama.cpp: .llama/llama-server is ready"
