#!/usr/bin/env bash
# Prints the first Python of the given versions that is there and can make environments: find_python.sh 3.13 3.12 3.11
for version in "$@"; do
  # pyenv keeps what it has installed from the PATH until it is told to use it.
  for python in "python$version" "$(pyenv prefix "$version" 2>/dev/null)/bin/python"; do
    if "$python" -c "import ensurepip, sys, venv; sys.exit('%d.%d' % sys.version_info[:2] != '$version')" 2>/dev/null; then
      echo "$python"
      exit 0
    fi
  done
done
exit 1
