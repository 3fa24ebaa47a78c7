"""The quick suite that every change of this project is gated on: small programs of each kind.

One case for each thing that a pass can make worse: straight-line and scanned layers, a
fused attention kernel, automatic sharding with its collectives.
"""

from __future__ import annotations

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parent))

from common import workload
from farrier.bench import OptionSet

TARGETS = ["h100"]
OPTION_SETS = [
    OptionSet("unannotated"),
    OptionSet("checkpoint-dots", variant={"remat": "dots"}),
]
REFERENCE = "unannotated"

EIGHT = ["h100:1x1x8"]


def cases():
    yield workload("llm-tiny")
    yield workload("llm-1b", case="llm-1b-2-layers", layers=2)
    yield workload("llm-1b-scan", case="llm-1b-scan-4-layers", layers=4, option_sets=["unannotated"])
    yield workload("llm-tiny", case="llm-tiny-sharded", targets=EIGHT, option_sets=["unannotated"], batch=8)
