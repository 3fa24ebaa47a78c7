"""XLA's flags under which two programs of the same operations give the same bits on CPU.

Set before JAX starts: XLA:CPU reads some of them when its client starts.
"""

# One rounding for each operation, in one order of summation:
EXACT = (
    # bf16 results are not kept in f32;
    "--xla_allow_excess_precision=false",
    # a product and a sum that a fusion puts together are not contracted to one FMA;
    "--xla_cpu_max_isa=AVX",
    # a small loop is not compiled into one kernel, whose own products sum in another order than the library's: on
    # jax 0.11.2 the same x @ w differed by a bit inside and outside a loop, without farrier.
    "--xla_backend_extra_options=xla_cpu_small_while_loop_byte_threshold=0",
    # several operations are not put together into one kernel of YNNPACK's, whose exponentials and sums round
    # differently from XLA's: which ones are depends on what has a second reader.
    "--xla_cpu_experimental_ynn_fusion_type=individual_dot",
)

DEVICES = "--xla_force_host_platform_device_count=8"

# For programs whose two versions XLA fuses differently: its simplifier moves operations through one another where
# nothing stands between them, and LLVM's optimizations round by what was fused with what.
UNOPTIMIZED = ("--xla_disable_hlo_passes=algsimp", "--xla_backend_optimization_level=0")
