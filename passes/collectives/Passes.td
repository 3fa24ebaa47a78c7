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

#endif // FARRIER_PASSES_COLLECTIVES
