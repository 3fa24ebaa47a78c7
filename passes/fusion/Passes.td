#ifndef FARRIER_PASSES_FUSION_PASSES
#define FARRIER_PASSES_FUSION_PASSES
include "mlir/Pass/PassBase.td"

def Fusion : Pass<"farrier-fusion", "::mlir::ModuleOp"> {
  let summary = "Substitute kernels and restructure so that giant intermediates never exist";
  let description = [{
    XLA:GPU cannot be told to fuse; it can be given a program whose fusion is right. Each rewrite recognises a
    part of the program by what it computes, not by how it was written, and leaves everything else untouched:
    a program in which nothing is rewritten comes out byte-identical.

    - `cross-entropy`: everything between the product that makes logits and the small values they are reduced
      to (loss, gradients) runs as one loop over chunks of tokens, so that neither logits nor their gradient
      ever exist whole. Every per-token value is bit-identical; the gradient of the weights is added up chunk
      by chunk in f32. Costs no floating point operations; each chunk reads and writes the sum of the weights'
      gradient once more, which is why a handful of large chunks is better than many small ones.

    ```mlir
    %logits = stablehlo.dot_general %x, %w ...      // [tokens, vocabulary] f32
    ...                                             // softmax, masks, gradient
    %dw = stablehlo.dot_general %dlogits, %x ...
    // becomes
    %r:4 = stablehlo.while(%i = %c0, %nll = ..., %dx = ..., %dw = ...) { one chunk of tokens }
    ```

    - `attention`: dot, scale, mask, softmax, dot, and the gradients that autodiff made of it become cuDNN flash
      attention custom calls. The part is found by axis roles and checked by evaluating it on sampled rows
      against the definition of attention; masks are evaluated, not matched. Biases and masks that the kernels have
      no name for become a tensor that they add to the scores. Under automatic sharding kernels stand in
      `sdy.manual_computation`, over the mesh axes that `attention-split` names.

    - `ragged-dot`: `chlo.ragged_dot` and its gradients, which XLA:GPU computes as one masked dense product per
      group, become a grouped matrix product: a Triton kernel, generated here and compiled by XLA, in which each
      program looks up its group. Tiles start where groups start, so that results are deterministic.

    - `one-hot`: products with tensors of which each row picks a few places (dispatch and combine of a mixture of
      experts, and their gradients) become gathers. Which places, the program says where it compares positions
      with indices; that all other elements are zero, and that no two tokens share a slot because slots are a
      running count, is proven by interval analysis, or the product stays.

    - `stacks`: stacks of results that a loop fills slice by slice start as an uninitialised buffer instead of
      zeros, where every slice is proven to be written before anything can read it. Fewer bytes are moved, but
      XLA may then keep one stack more alive, so it has to be asked for.

    - `sink`: what a loop only reads and carries from iteration to iteration is stored once and read in each. Where it
      is made from much smaller values by elementwise and shape operations (masks, broadcasts, counts), and the loop
      reads it only where XLA fuses, it is made there instead; a cast of a stack of which each iteration reads one
      slice becomes a cast of the slice. Exact: the same operations on the same operands.

    ```mlir
    %m = stablehlo.broadcast_in_dim %row           // [8192, 8192]
    %r:2 = stablehlo.while(%c = %x, %mask = %m) { ... stablehlo.add %c, %mask ... }
    // becomes
    %r:2 = stablehlo.while(%c = %x, %row = %row) { %mask = stablehlo.broadcast_in_dim %row ... }
    ```

    - `fence`: XLA's DotMerger joins products that share an operand. Where a program computes in parts to save
      memory (micro-batches one after another, rows in chunks), what each part held for a while is then there all at
      once. Where that would raise the predicted peak of a block by `fence-bytes` or more, the products read what
      they share through barriers of their own, and stay apart; so do those with the frontend attribute
      `farrier.fence = "on"`. Products that read one operand several times instead of once lose what the merger
      would have saved.

    ```mlir
    %a = stablehlo.dot_general %x0, %w ...
    %b = stablehlo.dot_general %x1, %w ...         // after the last use of %a
    // becomes, for each of them
    %w0:2 = stablehlo.optimization_barrier %x0, %w
    %a = stablehlo.dot_general %x0, %w0#1 ...
    ```

    A scope or operation with the frontend attribute `farrier.fuse = "off"` is left alone; with
    `farrier.kernel = "off"` no kernel is put in its place (attention, ragged-dot).
  }];
  let options = [
    ListOption<"rewrites", "rewrites", "std::string",
               "Rewrites to try: cross-entropy, attention, ragged-dot, one-hot, sink, fence, stacks. Default: all but stacks">,
    Option<"numerics", "numerics", "std::string", "\"bounded\"",
           "bitwise: only what keeps every bit; bounded: also regrouped sums and kernels with f32 accumulation "
           "and a documented bound; relaxed: also narrower intermediates">,
    Option<"deterministic", "deterministic", "bool", "false",
           "Substitute nothing whose results vary from run to run">,
    Option<"chunks", "chunks", "int64_t", "0",
           "cross-entropy: number of chunks (rounded up to a divisor of the token count); 0: by chunk-bytes">,
    Option<"chunkBytes", "chunk-bytes", "int64_t", "536870912",
           "cross-entropy: the most bytes one chunk of f32 logits may take when chunks is 0">,
    Option<"minBytes", "min-bytes", "int64_t", "268435456",
           "cross-entropy: smaller f32 logits are left alone when chunks is 0">,
    ListOption<"shardings", "shardings", "std::string",
               "cross-entropy: how XLA will split products over devices, one entry each, as Shardy's propagation "
               "says: NUMBER:MESH:LEFT:RIGHT:RESULT, where NUMBER counts the operations of the inlined program and "
               "a value is its dimensions joined by /, each - or its axes joined by +, AXIS*SIZE. Products without "
               "an entry are left alone where the program is split over devices">,
    Option<"minOneHotFlops", "min-one-hot-flops", "int64_t", "1000000000",
           "one-hot: products that cost less are left alone; a kernel takes as long as these operations">,
    Option<"sinkBytes", "sink-bytes", "int64_t", "4194304",
           "sink: smaller values are left where they are; they stay in the L2 cache">,
    Option<"fenceBytes", "fence-bytes", "int64_t", "268435456",
           "fence: products are kept apart where merging them raises a block's predicted peak by this much or more">,
    Option<"minStackBytes", "min-stack-bytes", "int64_t", "1048576",
           "stacks: smaller ones are left alone; their zeros stay in the L2 cache">,
    Option<"maxHeadWidth", "max-head-width", "int64_t", "256",
           "attention: the widest head the target's cuDNN takes (256 on Hopper and later, 128 before)">,
    ListOption<"attentionSplit", "attention-split", "std::string",
               "attention under automatic sharding: for each site, in program order, the mesh and its axes, those "
               "that split the batch and those that split the heads: mesh|x:4+y:2|x|y. Query fusion.attention names "
               "the sites; farrier.optimize asks Shardy">,
  ];
}

#endif // FARRIER_PASSES_FUSION_PASSES
