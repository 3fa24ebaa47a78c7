#!/usr/bin/env bash
# Makes MLIR 22 available: nothing to do when it is found, apt-get where that is allowed, else it says how.
set -eu
major=22
for prefix in ${FARRIER_MLIR_PREFIX:-} /usr/lib/llvm-$major /opt/homebrew/opt/llvm@$major /usr/local/opt/llvm@$major; do
  if [ -f "$prefix/lib/cmake/mlir/MLIRConfig.cmake" ] && [ -x "$prefix/bin/FileCheck" ]; then exit 0; fi
done

packages=(g++ "libmlir-$major-dev" "mlir-$major-tools" "llvm-$major-dev" "llvm-$major-tools" "lld-$major" ccache)
if command -v apt-get >/dev/null; then
  sudo=""; [ "$(id -u)" -eq 0 ] || sudo="sudo"
  echo "installing ${packages[*]}"
  log=$(mktemp)
  if { $sudo apt-get update && $sudo env DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends "${packages[@]}"; } >"$log" 2>&1; then
    rm -f "$log"; exit 0
  fi
  tail -n 20 "$log" >&2
fi
cat >&2 <<EOF
MLIR $major is needed to build farrier (not to use its wheel).
  Debian 12+/Ubuntu: ${packages[*]}
      (older releases: the LLVM project's apt repository has the same packages)
  macOS: brew install llvm@$major
  elsewhere: build LLVM $major with -DLLVM_ENABLE_PROJECTS=mlir -DLLVM_ENABLE_RTTI=ON and set FARRIER_MLIR_PREFIX.
EOF
exit 1
