#ifndef FARRIER_PASSES_REMAT
#define FARRIER_PASSES_REMAT

include "mlir/Pass/PassBase.td"

def Rematerialization : Pass<"farrier-remat", "::mlir::ModuleOp"> {
  let summary = "Recompute residuals in the backward part instead of keeping them, to fit a memory budget";
  let description = [{
    Between the forward and the backward part of a training step, residuals wait in memory. This pass keeps those
    that are worth their bytes and computes the others again, from kept ones, right before the backward part needs
    them. A copy is tied to the gradient that reaches that point by a `stablehlo.optimization_barrier`: without one
    XLA would merge it with the original, or run it early.

    What is kept follows from minimum cuts (see `Problem.h`): for a given price of memory, no other choice costs
    less. Only operations that are known to be pure and deterministic are computed twice; the others' results are
    kept. The recomputed operations are the same operations on the same operands, so results do not change.

    A residual may also wait in host memory, where its transfers hide behind compute or cost less than computing it
    again. It is sent there where it is made and fetched before the backward part reads it, by the custom call that
    `jax.device_put` between memory spaces emits. Barriers hold the computation back until a transfer is done: without
    them XLA keeps the value on the device. In loops the whole stack lies on the host, and a slice is fetched one
    iteration ahead.

    With `plan`, applies a plan (JSON, as the query `remat.plan` answers); without, makes one for `budget`.

    Input:
    ```mlir
    %h = stablehlo.dot_general %x, %w ...      // forward
    %a = stablehlo.tanh %h
    ...
    %dh = stablehlo.multiply %da, %h           // backward reads %h
    ```
    Output, where `%h` does not fit:
    ```mlir
    %h = stablehlo.dot_general %x, %w ...
    %a = stablehlo.tanh %h
    ...
    %k:2 = stablehlo.optimization_barrier %x, %w, %da
    %h2 = stablehlo.dot_general %k#0, %k#1 ...
    %dh = stablehlo.multiply %k#2, %h2
    ```
  }];
  let options = [
    Option<"budget", "budget", "int64_t", "0", "Temporary bytes to stay within">,
    Option<"plan", "plan", "std::string", "\"\"", "File with a plan to apply instead of making one">,
    Option<"objective", "objective", "std::string", "\"time\"", "What to keep low: time or flops">,
    Option<"smallBytes", "small-bytes", "int64_t", "4194304", "Values smaller than this are kept whatever is chosen">,
    Option<"offload", "offload", "bool", "false",
           "Let residuals wait in host memory; without a plan that knows the target, over a link of 50 GB/s">,
    Option<"stress", "stress", "int64_t", "-1", "Seed of arbitrary legal choices, for tests">,
  ];
}

def RematerializeLoops : Pass<"farrier-remat-loops", "::mlir::ModuleOp"> {
  let summary = "Choose again what a scan's forward loop saves for its backward loop";
  let description = [{
    A scan and its derivative are two `stablehlo.while` loops. The forward one writes residuals into stacks, one
    slice an iteration; the backward one reads them. For each such pair this pass drops the stacks, adds one for
    each value that is worth saving, in its own type, and clones what follows from the saved values into the
    backward body. Where the bytes allowed fall between two choices, both loops are split in two.

    `farrier-remat` plans the same rewriting together with everything else under one budget; this pass gives each
    pair a share of the bytes it has now, for tests and for looking at one loop alone.

    Input:
    ```mlir
    %f:3 = stablehlo.while(%i = %c0, %x = %x0, %stack = %zeros) ... do {
      %h = stablehlo.tanh %x
      %s = stablehlo.dynamic_update_slice %stack, %h', %i
      stablehlo.return %i1, %y, %s
    }
    %b:2 = stablehlo.while(%j = %c0, %stack = %f#2) ... do {
      %h = stablehlo.dynamic_slice %stack, %last_minus_j
    ```
    Output, where `%x` is saved instead of `%h`:
    ```mlir
    %b:2 = stablehlo.while(%j = %c0, %stack = %f#2) ... do {
      %x = stablehlo.dynamic_slice %stack, %last_minus_j
      %h = stablehlo.tanh %x
    ```
  }];
  let options = [
    Option<"save", "save", "double", "1.0", "Share of the bytes in residual stacks that may stay; 1 changes nothing">,
    Option<"stress", "stress", "int64_t", "-1", "Seed of arbitrary legal choices, for tests">,
    Option<"sinkBytes", "sink-bytes", "int64_t", "4194304",
           "Loop-invariant operands at least this big that are cheap to make are made inside the loops">,
    Option<"replan", "replan", "bool", "true", "Choose again what jax.checkpoint already recomputes">,
    Option<"collectives", "collectives", "bool", "false", "Allow all_gather to be recomputed">,
  ];
}

def ForgetCheckpoints : Pass<"farrier-forget-checkpoints", "::mlir::ModuleOp"> {
  let summary = "Keep what jax.checkpoint computes again, so that it can be decided anew";
  let description = [{
    `jax.checkpoint` computes residuals again behind a `stablehlo.optimization_barrier`, or in the backward loop of a scan.
    This pass takes that back: what lies behind a barrier and is the same as something before it gives way to that, and a
    backward loop reads from a stack what it computed of products, where writing and reading the stack costs less. Operations
    are the same by name, attributes, regions and operands; collectives whatever their channels. A barrier that an
    `all_gather` reads from stays, with what is behind it: weights are gathered again for the sake of memory.

    With `shared`, a loop also reads from a stack what an earlier one computes of the same slices and invariants, in the same
    order or the reverse, where neither gets a stack of the other: attention in chunks under `jax.checkpoint`, whose backward
    loop computes each chunk's scores again. In the bodies of a scan and its derivative the later loop reads from a copy of the
    earlier one, which is then what the backward loop of the scan computes again.

    `farrier-remat` plans such a program, and the program as it is, and takes the cheaper one within the budget.

    Input:
    ```mlir
    %h = stablehlo.dot_general %x, %w ...      // forward
    ...
    %k:2 = stablehlo.optimization_barrier %x, %dy
    %h2 = stablehlo.dot_general %k#0, %w ...   // the same again
    %dh = stablehlo.multiply %k#1, %h2
    ```
    Output:
    ```mlir
    %h = stablehlo.dot_general %x, %w ...
    ...
    %dh = stablehlo.multiply %dy, %h
    ```
  }];
  let options = [
    Option<"objective", "objective", "std::string", "\"time\"", "By what loops save: time or flops">,
    Option<"shared", "shared", "bool", "false",
           "Also keep products that two loops compute of the same, where neither hands the other a stack">,
    Option<"known", "known", "std::string", "\"\"",
           "File with shards and wrapped kernels of the program (JSON), as queries are told them">,
  ];
}

def NumberOperations : Pass<"farrier-number-operations", "::mlir::ModuleOp"> {
  let summary = "Inline calls and number every operation, for an analysis that another library makes";
  let description = [{
    jaxlib runs Shardy's propagation on the numbered program; by the numbers (`farrier.op`) the planner learns over
    how many devices each value is split. Nothing that is compiled comes out of this pass.

    Input:
    ```mlir
    %0 = stablehlo.tanh %x : tensor<8xf32>
    ```
    Output:
    ```mlir
    %0 = stablehlo.tanh %x {farrier.op = 0 : i64} : tensor<8xf32>
    ```
  }];
}

#endif // FARRIER_PASSES_REMAT
