"""Programs that farrier is measured on: training steps in plain JAX, by name.

    built = workloads.build("llm-1b", farrier.Target("h100"))
    built.lower()                                  # abstract, for the target
    workloads.build("llm-tiny").real_arguments()   # concrete, for a run on this machine

Every workload is ordinary user code: nothing in it knows farrier.
"""

from workloads.registry import COLLECTIVES as COLLECTIVES
from workloads.registry import Built as Built
from workloads.registry import build as build
from workloads.registry import names as names
from workloads.registry import options as options
from workloads.registry import topology as topology
