// Logits become a loop over chunks of tokens; what leaves it is small.
// RUN: farrier-opt %s --farrier-fusion="chunks=4" --mlir-print-op-generic | FileCheck %s

// CHECK-LABEL: sym_name = "main"
// CHECK-NOT: tensor<64x128xf32>
// CHECK: "stablehlo.while"
// CHECK: "stablehlo.dynamic_slice"{{.*}}slice_sizes = array<i64: 16, 8>
// CHECK: "stablehlo.dot_general"{{.*}} -> tensor<16x128xf32>
// CHECK: "stablehlo.exponential"{{.*}} tensor<16x128xf32>
// CHECK: "stablehlo.dynamic_update_slice"{{.*}} -> tensor<64xf32>
// CHECK: "func.return"({{.*}}) : (tensor<64xf32>) -> ()
"func.func"() <{function_type = (tensor<64x8xf32>, tensor<8x128xf32>) -> tensor<64xf32>, sym_name = "main"}> ({
^bb0(%x: tensor<64x8xf32>, %w: tensor<8x128xf32>):
  %zero = "stablehlo.constant"() <{value = dense<0.0> : tensor<f32>}> : () -> tensor<f32>
  %logits = "stablehlo.dot_general"(%x, %w) <{dot_dimension_numbers = #stablehlo.dot<lhs_contracting_dimensions = [1], rhs_contracting_dimensions = [0]>}> : (tensor<64x8xf32>, tensor<8x128xf32>) -> tensor<64x128xf32>
  %e = "stablehlo.exponential"(%logits) : (tensor<64x128xf32>) -> tensor<64x128xf32>
  %s = "stablehlo.reduce"(%e, %zero) <{dimensions = array<i64: 1>}> ({
  ^bb1(%a: tensor<f32>, %b: tensor<f32>):
    %c = "stablehlo.add"(%a, %b) : (tensor<f32>, tensor<f32>) -> tensor<f32>
    "stablehlo.return"(%c) : (tensor<f32>) -> ()
  }) : (tensor<64x128xf32>, tensor<f32>) -> tensor<64xf32>
  %l = "stablehlo.log"(%s) : (tensor<64xf32>) -> tensor<64xf32>
  "func.return"(%l) : (tensor<64xf32>) -> ()
}) : () -> ()

// What is returned must exist: nothing changes.
// CHECK-LABEL: sym_name = "returned"
// CHECK: "stablehlo.dot_general"{{.*}} -> tensor<64x128xf32>
"func.func"() <{function_type = (tensor<64x8xf32>, tensor<8x128xf32>) -> (tensor<64x128xf32>, tensor<64xf32>), sym_name = "returned"}> ({
^bb0(%x: tensor<64x8xf32>, %w: tensor<8x128xf32>):
  %zero = "stablehlo.constant"() <{value = dense<0.0> : tensor<f32>}> : () -> tensor<f32>
  %logits = "stablehlo.dot_general"(%x, %w) <{dot_dimension_numbers = #stablehlo.dot<lhs_contracting_dimensions = [1], rhs_contracting_dimensions = [0]>}> : (tensor<64x8xf32>, tensor<8x128xf32>) -> tensor<64x128xf32>
  %e = "stablehlo.exponential"(%logits) : (tensor<64x128xf32>) -> tensor<64x128xf32>
  %s = "stablehlo.reduce"(%e, %zero) <{dimensions = array<i64: 1>}> ({
  ^bb1(%a: tensor<f32>, %b: tensor<f32>):
    %c = "stablehlo.add"(%a, %b) : (tensor<f32>, tensor<f32>) -> tensor<f32>
    "stablehlo.return"(%c) : (tensor<f32>) -> ()
  }) : (tensor<64x128xf32>, tensor<f32>) -> tensor<64xf32>
  "func.return"(%logits, %s) : (tensor<64x128xf32>, tensor<64xf32>) -> ()
}) : () -> ()
