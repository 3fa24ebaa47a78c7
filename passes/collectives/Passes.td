#ifndef FARRIER_PASSES_COLLECTIVES
#define FARRIER_PASSES_COLLECTIVES

include "mlir/Pass/PassBase.td"

def SimplifyCollectives : Pass<"farrier-simplify-collectives", "::mlir::ModuleOp"> {
  let summary = "Send explicit collectives in the narrow type and remove those over one device";
  let description = [{
    Two rewrites of collectives that the program states itself (`shard_map`), both exact:

    * a gather, permutation or exchange whose every use converts to one narrower type converts first: rounding each
      element before it moves or after gives the same bits, and half the bytes move;
    * a collective over groups of one device is its operand.

    Input:

    ```mlir
    %g = "stablehlo.all_gather"(%w) <{all_gather_dim = 0 : i64, ...}> : (tensor<4x8xf32>) -> tensor<32x8xf32>
    %h = stablehlo.convert %g : (tensor<32x8xf32>) -> tensor<32x8xbf16>
    ```

    Output:

    ```mlir
    %n = stablehlo.convert %w : (tensor<4x8xf32>) -> tensor<4x8xbf16>
    %h = "stablehlo.all_gather"(%n) <{all_gather_dim = 0 : i64, ...}> : (tensor<4x8xbf16>) -> tensor<32x8xbf16>
    ```

    A collective that carries frontend attributes, shardings or anything else this build does not model stays.
  }];
}

def MergeCollectives : Pass<"farrier-merge-collectives", "::mlir::ModuleOp"> {
  let summary = "Remove explicit collectives that repeat or undo another one";
  let description = [{
    Within a block:

    * a collective that does the same to the same operands as an earlier one is that one: JAX gives each a channel of
      its own, so that MLIR's CSE sees two;
    * a maximum, minimum, "and" or "or" over a group of what the same reduction has just made is its operand;
    * a gather of what a reduction has just scattered, over the same groups along the same dimension, is one
      all-reduce: one latency less. It adds the same values, which a GPU may do in another order (`regroup`);
    * a permutation of a permutation is one, and half the bytes move.

    Input:

    ```mlir
    %p = "stablehlo.collective_permute"(%x) <{source_target_pairs = dense<[[0, 1], [1, 0]]> ...}> ...
    %q = "stablehlo.collective_permute"(%p) <{source_target_pairs = dense<[[0, 1], [1, 0]]> ...}> ...
    ```

    Output:

    ```mlir
    %q = "stablehlo.collective_permute"(%x) <{source_target_pairs = dense<[[1, 1], [0, 0]]> ...}> ...
    ```

    The trade: the one that stays may hold its result longer. A repetition across an `optimization_barrier`
    (`jax.checkpoint`) reads another value and stays. Collectives that carry frontend attributes, shardings or
    anything else this build does not model stay as well.
  }];
  let options = [
    Option<"regroup", "regroup", "bool", /*default=*/"true",
           "Whether sums may be added up in another order: a scatter and a gather become one reduction">,
  ];
}

def ChainCollectives : Pass<"farrier-chain-collectives", "::mlir::ModuleOp"> {
  let summary = "Keep XLA from combining small explicit reductions into one that nothing hides";
  let description = [{
    XLA joins reductions of up to about 30 MB into one, which can start only when the last of its operands exists:
    gradients of four layers become one reduction at the end of the step with nothing beside it. Independent
    barriers do not prevent that; a dependency does. This pass puts the reductions of each block that are small enough
    to be joined into buckets in program order and makes each bucket wait for the one before:

    ```mlir
    %r0 = "stablehlo.all_reduce"(%g0) ...
    %b:2 = stablehlo.optimization_barrier %g1, %r0
    %r1 = "stablehlo.all_reduce"(%b#0) ...
    ```

    The trade: within the chain the order is now the program's. Reductions share one stream and so run one after the
    other anyway, but one whose operand is late holds back those after it. JAX writes gradients in the order in which
    the backward makes them, and there it costs nothing; the schedule's simulation judges the result, as always.
    Values are the same bits: the barrier computes nothing.
  }];
  let options = [
    Option<"bucketBytes", "bucket-bytes", "int64_t", /*default=*/"8388608",
           "Results of one bucket together, bytes; XLA may still join what is in one bucket">,
    Option<"combinableBytes", "combinable-bytes", "int64_t", /*default=*/"31457280",
           "Reductions with a result of this size and more are left alone: XLA does not join them, bytes">,
  ];
}

def SplitBatch : Pass<"farrier-split-batch", "::mlir::ModuleOp"> {
  let summary = "Run layers in two halves, so that one half's reduction hides behind the other's kernels";
  let description = [{
    Under tensor parallelism an all-reduce stands between two products and nothing else of the layer can run beside
    it. This pass looks for an axis (in practice the batch) along which everything between the large all-reduces of a
    block works row by row, and runs all of that in two halves which do not depend on each other:

    ```mlir
    %p = stablehlo.dot_general %x, %w, contracting_dims = [2] x [0] : (tensor<2x8x16xbf16>, ...)
    %r = "stablehlo.all_reduce"(%p) ...
    %y = stablehlo.tanh %r : tensor<2x8x16xbf16>
    ```

    becomes

    ```mlir
    %x0 = stablehlo.slice %x [0:1, 0:8, 0:16] ...
    %p0 = stablehlo.dot_general %x0, %w, contracting_dims = [2] x [0] : (tensor<1x8x16xbf16>, ...)
    %r0 = "stablehlo.all_reduce"(%p0) ... {combiner_key = "farrier_half_0"}
    %y0 = stablehlo.tanh %r0 : tensor<1x8x16xbf16>
    ...                                        // the same with the other half
    ```

    Products that sum over the axis (gradients of weights) become the sum of two, added up in f32: a regrouped
    reduction. Everything else keeps its bits. What is not understood along the axis reads both halves, joined.

    The trade: smaller kernels, and twice the number of collectives. XLA's dot-merger and multi-output fusion would
    put the halves together again; compile with `xla_disable_hlo_passes=dot-merger,multi_output_fusion`. Calls of
    private functions are inlined first where there is something to halve.
  }];
  let options = [
    Option<"minBytes", "min-bytes", "int64_t", /*default=*/"4194304",
           "All-reduces with a smaller result are no reason to split, bytes">,
    Option<"regroup", "regroup", "bool", /*default=*/"true",
           "Whether sums over the axis may be added up from two parts; otherwise they read both halves, joined">,
  ];
}

def ScatterReductions : Pass<"farrier-scatter-reductions", "::mlir::ModuleOp"> {
  let summary = "Scatter reductions, work on each device's part, gather where the whole is read";
  let description = [{
    An all-reduce is a reduce-scatter and an all-gather. Between the two, each device of the group has a part of the
    result, and what works row by row on values that the devices agree on (norms, residuals, their gradients) needs
    no more: it takes 1/n of the time, and what is kept of it 1/n of the memory. Under tensor parallelism this is
    sequence parallelism (Korthikanti et al. 2022). Where the program reads only its own slice, there is no gather.

    ```mlir
    %r = "stablehlo.all_reduce"(%p) <{replica_groups = dense<[[0, 1]]> ...}> : (tensor<8x16xbf16>) -> tensor<8x16xbf16>
    %t = stablehlo.tanh %r : tensor<8x16xbf16>
    %y = stablehlo.dot_general %t, %w, contracting_dims = [1] x [0] ...  // %w differs from device to device
    ```

    becomes

    ```mlir
    %r = "stablehlo.reduce_scatter"(%p) <{scatter_dimension = 0 : i64 ...}> : (tensor<8x16xbf16>) -> tensor<4x16xbf16>
    %t = stablehlo.tanh %r : tensor<4x16xbf16>
    %g = "stablehlo.all_gather"(%t) <{all_gather_dim = 0 : i64 ...}> : (tensor<4x16xbf16>) -> tensor<8x16xbf16>
    %y = stablehlo.dot_general %g, %w, contracting_dims = [1] x [0] ...
    ```

    The pass works inside `sdy.manual_computation` (`shard_map`) over all axes of a mesh. It proves which values the
    devices of a group agree on (arguments that the group's axes do not split, results of reductions over it, and
    what is made of those alone), follows the rows from the reductions in all directions, through the state of loops
    too, and decides where to gather: a state that the next loop reads whole stays whole. Gathers never carry more
    than the reductions did, loops counted as often as they run; otherwise the reduction stays.

    The trade: two latencies instead of one, and a switch that reduces on its own (NVLS) helps a reduction more than a
    scatter. Sums over the rows (gradients of a norm's weight) become partial sums and a small reduction, and a
    scatter may add in another order than a reduction: a regrouped sum, not for `numerics="bitwise"`. Calls of private
    functions are inlined first where there is something to scatter.
  }];
  let options = [
    Option<"minBytes", "min-bytes", "int64_t", /*default=*/"4194304",
           "All-reduces with a smaller result are no reason to scatter, bytes">,
    Option<"regroup", "regroup", "bool", /*default=*/"true",
           "Whether sums over the rows may be added up from each device's part; otherwise they read the whole">,
  ];
}

#endif // FARRIER_PASSES_COLLECTIVES
