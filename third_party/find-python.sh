#!/usr/bin/env bash
# Prints the path of a Python of one of the versions given, in order of preference ("3.13 3.12").
# A user's own choice in $PYTHON wins; then PATH, pyenv, uv's, conda's and the usual prefixes.
set -eu
wanted=("$@")

version_of() { "$1" -c 'import sys, venv, ensurepip; print("%d.%d" % sys.version_info[:2])' 2>/dev/null || true; }

candidates() { # of one version
  command -v "python$1" || true
  ls -d "${PYENV_ROOT:-$HOME/.pyenv}"/versions/"$1".*/bin/python 2>/dev/null | sort -rV || true
  ls -d "${XDG_DATA_HOME:-$HOME/.local/share}"/uv/python/cpython-"$1".*/bin/python3 2>/dev/null | sort -rV || true
  ls -d "${CONDA_PREFIX:-/nonexistent}"/bin/python /opt/python/cp"${1/./}"-*/bin/python \
        /usr/local/bin/python"$1" /opt/homebrew/bin/python"$1" 2>/dev/null || true
  command -v python3 || true
}

if [ -n "${PYTHON:-}" ]; then
  have=$(version_of "$PYTHON")
  for version in "${wanted[@]}"; do
    [ "$have" = "$version" ] && { echo "$PYTHON"; exit 0; }
  done
fi
for version in "${wanted[@]}"; do
  while read -r python; do
    [ "$(version_of "$python")" = "$version" ] && { echo "$python"; exit 0; }
  done < <(candidates "$version")
done
echo "farrier needs Python ${wanted[*]} (with venv) and none was found. Install one, for example" >&2
echo "  Debian/Ubuntu: apt-get install python${wanted[0]} python${wanted[0]}-venv    pyenv: pyenv install ${wanted[0]}" >&2
echo "  uv: uv python install ${wanted[0]}    or name one: PYTHON=/path/to/python make test" >&2
exit 1
