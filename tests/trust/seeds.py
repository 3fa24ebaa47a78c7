"""What the fuzzer starts from: ``python -m trust.seeds FOLDER`` writes one file for each module of the lit tests
and of ``tests/programs``, and beside the folder a dictionary of every operation's and attribute's name.
"""

from __future__ import annotations

import hashlib
import os
import pathlib
import sys
from collections.abc import Iterator

os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=8")

LIT = pathlib.Path(__file__).parents[1] / "lit"
MOST_BYTES = 16 << 10


def texts() -> Iterator[bytes]:
    """Modules, as they are written in lit tests and as JAX lowers programs."""
    import programs
    from farrier._src import interchange

    for path in sorted(LIT.glob("**/*.mlir")):
        for part in path.read_text().split("// -----"):
            lines = [line for line in part.splitlines() if not line.lstrip().startswith("//")]
            yield "\n".join(lines).encode()
    for program in programs.programs(platform="cpu", symbolic=False):
        yield interchange.print_module(program.module(), locations=False)


def words() -> list[str]:
    """Names that a mutation may put anywhere."""
    from farrier import _core

    operations = _core.dialect_operations("stablehlo")
    attributes = {name for names in operations.values() for name in names}
    types = [
        "f32",
        "bf16",
        "i1",
        "i32",
        "ui8",
        "f8E4M3FN",
        "complex<f32>",
        "tensor<?x",
        "tensor<0x",
        "tuple<",
    ]
    return sorted(operations) + sorted(attributes) + types


def main() -> None:
    folder = pathlib.Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    for text in texts():
        if text.strip() and len(text) <= MOST_BYTES:
            (folder / hashlib.sha256(text).hexdigest()[:16]).write_bytes(text)
    folder.with_suffix(".dict").write_text("".join(f'"{word}"\n' for word in words()))
    print(f"{len(list(folder.iterdir()))} seeds in {folder}")


if __name__ == "__main__":
    main()
