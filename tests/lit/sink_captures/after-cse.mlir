// CSE merges the conversion inside the reduction with the one outside; the pass that runs after every pipeline puts it
// back, because XLA refuses it.
// RUN: farrier-opt %s --cse --mlir-print-op-generic | FileCheck %s

// CHECK-LABEL: sym_name = "main"
// CHECK: "stablehlo.convert"
// CHECK: "stablehlo.reduce"
// CHECK-NEXT: ^bb0(%[[A:.*]]: tensor<f32>, %[[B:.*]]: tensor<f32>):
// CHECK-NEXT: %[[C:.*]] = "stablehlo.constant"() <{value = dense<2.000000e+00> : tensor<f64>}>
// CHECK-NEXT: %[[F:.*]] = "stablehlo.convert"(%[[C]])
// CHECK-NEXT: %[[M:.*]] = "stablehlo.multiply"(%[[A]], %[[F]])
func.func @main(%x: tensor<4xf32>, %z: tensor<f32>) -> (tensor<f32>, tensor<f32>) {
  %c = "stablehlo.constant"() <{value = dense<2.0> : tensor<f64>}> : () -> tensor<f64>
  %f = "stablehlo.convert"(%c) : (tensor<f64>) -> tensor<f32>
  %r = "stablehlo.reduce"(%x, %z) <{dimensions = array<i64: 0>}> ({
  ^bb0(%a: tensor<f32>, %b: tensor<f32>):
    %d = "stablehlo.constant"() <{value = dense<2.0> : tensor<f64>}> : () -> tensor<f64>
    %g = "stablehlo.convert"(%d) : (tensor<f64>) -> tensor<f32>
    %m = "stablehlo.multiply"(%a, %g) : (tensor<f32>, tensor<f32>) -> tensor<f32>
    %s = "stablehlo.add"(%m, %b) : (tensor<f32>, tensor<f32>) -> tensor<f32>
    "stablehlo.return"(%s) : (tensor<f32>) -> ()
  }) : (tensor<4xf32>, tensor<f32>) -> tensor<f32>
  return %r, %f : tensor<f32>, tensor<f32>
}
