#ifndef FARRIER_PASSES_SINK_CAPTURES
#define FARRIER_PASSES_SINK_CAPTURES

include "mlir/Pass/PassBase.td"

def SinkCaptures : Pass<"farrier-sink-captures", "::mlir::ModuleOp"> {
  let summary = "Make the regions of reductions, sorts, scatters and collectives self-contained";
  let description = [{
    MLIR's CSE replaces an operation inside a region by an equal one outside of it. XLA accepts that in branches and
    loops, but the regions of reductions, sorts, scatters and collectives may take nothing but constants from
    outside. This pass clones into such a region what it takes from outside, when that is pure and depends on nothing
    but more of its kind, which is all that CSE can have moved. It runs by itself after every pipeline.

    Input:

    ```mlir
    %c = stablehlo.constant dense<2.0> : tensor<f64>
    %f = stablehlo.convert %c : (tensor<f64>) -> tensor<f32>
    %r = "stablehlo.reduce"(%x, %z) <{dimensions = array<i64: 0>}> ({
    ^bb0(%a: tensor<f32>, %b: tensor<f32>):
      %s = stablehlo.multiply %a, %f : tensor<f32>
      stablehlo.return %s : tensor<f32>
    }) : (tensor<4xf32>, tensor<f32>) -> tensor<f32>
    ```

    Output:

    ```mlir
    %r = "stablehlo.reduce"(%x, %z) <{dimensions = array<i64: 0>}> ({
    ^bb0(%a: tensor<f32>, %b: tensor<f32>):
      %c = stablehlo.constant dense<2.0> : tensor<f64>
      %f = stablehlo.convert %c : (tensor<f64>) -> tensor<f32>
      %s = stablehlo.multiply %a, %f : tensor<f32>
      stablehlo.return %s : tensor<f32>
    }) : (tensor<4xf32>, tensor<f32>) -> tensor<f32>
    ```
  }];
}

#endif // FARRIER_PASSES_SINK_CAPTURES
