"""Reading XLA's optimized HLO: modules, FLOPs, kernels, bytes, collectives."""

from farrier._src.hlo.module import Computation as Computation
from farrier._src.hlo.module import Instruction as Instruction
from farrier._src.hlo.module import Module as Module
