// RUN: farrier-opt %s --farrier-split-batch="min-bytes=1" --split-input-file --mlir-print-op-generic | FileCheck %s
// RUN: farrier-opt %s --farrier-split-batch="min-bytes=1 regroup=false" --split-input-file --mlir-print-op-generic | FileCheck %s --check-prefix=WHOLE
// RUN: farrier-opt %s --farrier-split-batch --split-input-file --mlir-print-op-generic | FileCheck %s --check-prefix=SMALL

// Two products with an all-reduce after each, and the gradient of the first weight, which sums over the batch.
// CHECK-LABEL: sym_name = "layer"
// CHECK: ^bb0(%[[X:.*]]: tensor<2x4x8xbf16>, %[[W:.*]]: tensor<8x8xbf16>
// CHECK-DAG: %[[X0:.*]] = "stablehlo.slice"(%[[X]]) <{limit_indices = array<i64: 1, 4, 8>, start_indices = array<i64: 0, 0, 0>
// CHECK-DAG: %[[X1:.*]] = "stablehlo.slice"(%[[X]]) <{limit_indices = array<i64: 2, 4, 8>, start_indices = array<i64: 1, 0, 0>
// CHECK: %[[P0:.*]] = "stablehlo.dot_general"(%[[X0]], %[[W]])
// CHECK: %[[P1:.*]] = "stablehlo.dot_general"(%[[X1]], %[[W]])
// CHECK: %[[R0:.*]] = "stablehlo.all_reduce"(%[[P0]])
// CHECK: {mhlo.frontend_attributes = {combiner_key = "farrier_half_0"}} : (tensor<1x4x8xbf16>) -> tensor<1x4x8xbf16>
// CHECK: %[[R1:.*]] = "stablehlo.all_reduce"(%[[P1]])
// CHECK: {mhlo.frontend_attributes = {combiner_key = "farrier_half_1"}}
// CHECK: "stablehlo.tanh"(%[[R0]]) : (tensor<1x4x8xbf16>)
// CHECK: "stablehlo.tanh"(%[[R1]]) : (tensor<1x4x8xbf16>)
// CHECK: %[[Y:.*]] = "stablehlo.concatenate"({{.*}}) <{dimension = 0 : i64}> : (tensor<1x4x8xbf16>, tensor<1x4x8xbf16>) -> tensor<2x4x8xbf16>
// CHECK: %[[G0:.*]] = "stablehlo.dot_general"(%[[X0]], {{.*}} -> tensor<8x8xf32>
// CHECK: %[[G1:.*]] = "stablehlo.dot_general"(%[[X1]], {{.*}} -> tensor<8x8xf32>
// CHECK: %[[G:.*]] = "stablehlo.add"(%[[G0]], %[[G1]])
// CHECK: %[[N:.*]] = "stablehlo.convert"(%[[G]]) : (tensor<8x8xf32>) -> tensor<8x8xbf16>
// CHECK: "func.return"(%[[Y]], %[[N]])
// WHOLE-LABEL: sym_name = "layer"
// WHOLE: "stablehlo.all_reduce"{{.*}}
// WHOLE: %[[Z:.*]] = "stablehlo.concatenate"
// WHOLE: "stablehlo.dot_general"(%{{.*}}, %[[Z]]) {{.*}} : (tensor<2x4x8xbf16>, tensor<2x4x8xbf16>) -> tensor<8x8xbf16>
// SMALL-LABEL: sym_name = "layer"
// SMALL-NOT: slice
"func.func"() <{function_type = (tensor<2x4x8xbf16>, tensor<8x8xbf16>) -> (tensor<2x4x8xbf16>, tensor<8x8xbf16>), sym_name = "layer"}> ({
^bb0(%x: tensor<2x4x8xbf16>, %w: tensor<8x8xbf16>):
  %p = "stablehlo.dot_general"(%x, %w) <{dot_dimension_numbers = #stablehlo.dot<lhs_contracting_dimensions = [2], rhs_contracting_dimensions = [0]>}> : (tensor<2x4x8xbf16>, tensor<8x8xbf16>) -> tensor<2x4x8xbf16>
  %r = "stablehlo.all_reduce"(%p) <{replica_groups = dense<[[0, 1]]> : tensor<1x2xi64>}> ({
  ^bb0(%a: tensor<bf16>, %b: tensor<bf16>):
    %s = "stablehlo.add"(%a, %b) : (tensor<bf16>, tensor<bf16>) -> tensor<bf16>
    "stablehlo.return"(%s) : (tensor<bf16>) -> ()
  }) : (tensor<2x4x8xbf16>) -> tensor<2x4x8xbf16>
  %t = "stablehlo.tanh"(%r) : (tensor<2x4x8xbf16>) -> tensor<2x4x8xbf16>
  %q = "stablehlo.dot_general"(%t, %w) <{dot_dimension_numbers = #stablehlo.dot<lhs_contracting_dimensions = [2], rhs_contracting_dimensions = [0]>}> : (tensor<2x4x8xbf16>, tensor<8x8xbf16>) -> tensor<2x4x8xbf16>
  %y = "stablehlo.all_reduce"(%q) <{replica_groups = dense<[[0, 1]]> : tensor<1x2xi64>}> ({
  ^bb0(%a: tensor<bf16>, %b: tensor<bf16>):
    %s = "stablehlo.add"(%a, %b) : (tensor<bf16>, tensor<bf16>) -> tensor<bf16>
    "stablehlo.return"(%s) : (tensor<bf16>) -> ()
  }) : (tensor<2x4x8xbf16>) -> tensor<2x4x8xbf16>
  %g = "stablehlo.dot_general"(%x, %y) <{dot_dimension_numbers = #stablehlo.dot<lhs_contracting_dimensions = [0, 1], rhs_contracting_dimensions = [0, 1]>}> : (tensor<2x4x8xbf16>, tensor<2x4x8xbf16>) -> tensor<8x8xbf16>
  "func.return"(%y, %g) : (tensor<2x4x8xbf16>, tensor<8x8xbf16>) -> ()
}) : () -> ()

// -----

// One all-reduce has nothing to hide behind; an odd batch has no halves, and along the features the products sum.
// CHECK-LABEL: sym_name = "alone"
// CHECK-NOT: slice
"func.func"() <{function_type = (tensor<3x8xf32>) -> tensor<3x8xf32>, sym_name = "alone"}> ({
^bb0(%x: tensor<3x8xf32>):
  %r = "stablehlo.all_reduce"(%x) <{replica_groups = dense<[[0, 1]]> : tensor<1x2xi64>}> ({
  ^bb0(%a: tensor<f32>, %b: tensor<f32>):
    %s = "stablehlo.add"(%a, %b) : (tensor<f32>, tensor<f32>) -> tensor<f32>
    "stablehlo.return"(%s) : (tensor<f32>) -> ()
  }) : (tensor<3x8xf32>) -> tensor<3x8xf32>
  "func.return"(%r) : (tensor<3x8xf32>) -> ()
}) : () -> ()

// -----

// A gather of features takes the batch whole: of a half it takes the half.
// CHECK-LABEL: sym_name = "gathered"
// SMALL-LABEL: sym_name = "gathered"
// CHECK-COUNT-2: "stablehlo.gather"{{.*}} slice_sizes = array<i64: 1, 4, 1>}> : (tensor<1x4x8xbf16>, tensor<8x1xi32>) -> tensor<1x4x8xbf16>
"func.func"() <{function_type = (tensor<2x4x8xbf16>, tensor<8x8xbf16>, tensor<8x1xi32>) -> tensor<2x4x8xbf16>, sym_name = "gathered"}> ({
^bb0(%x: tensor<2x4x8xbf16>, %w: tensor<8x8xbf16>, %i: tensor<8x1xi32>):
  %p = "stablehlo.dot_general"(%x, %w) <{dot_dimension_numbers = #stablehlo.dot<lhs_contracting_dimensions = [2], rhs_contracting_dimensions = [0]>}> : (tensor<2x4x8xbf16>, tensor<8x8xbf16>) -> tensor<2x4x8xbf16>
  %r = "stablehlo.all_reduce"(%p) <{replica_groups = dense<[[0, 1]]> : tensor<1x2xi64>}> ({
  ^bb0(%a: tensor<bf16>, %b: tensor<bf16>):
    %s = "stablehlo.add"(%a, %b) : (tensor<bf16>, tensor<bf16>) -> tensor<bf16>
    "stablehlo.return"(%s) : (tensor<bf16>) -> ()
  }) : (tensor<2x4x8xbf16>) -> tensor<2x4x8xbf16>
  %t = "stablehlo.gather"(%r, %i) <{dimension_numbers = #stablehlo.gather<offset_dims = [0, 1], collapsed_slice_dims = [2], start_index_map = [2], index_vector_dim = 1>, slice_sizes = array<i64: 2, 4, 1>}> : (tensor<2x4x8xbf16>, tensor<8x1xi32>) -> tensor<2x4x8xbf16>
  %q = "stablehlo.dot_general"(%t, %w) <{dot_dimension_numbers = #stablehlo.dot<lhs_contracting_dimensions = [2], rhs_contracting_dimensions = [0]>}> : (tensor<2x4x8xbf16>, tensor<8x8xbf16>) -> tensor<2x4x8xbf16>
  %y = "stablehlo.all_reduce"(%q) <{replica_groups = dense<[[0, 1]]> : tensor<1x2xi64>}> ({
  ^bb0(%a: tensor<bf16>, %b: tensor<bf16>):
    %s = "stablehlo.add"(%a, %b) : (tensor<bf16>, tensor<bf16>) -> tensor<bf16>
    "stablehlo.return"(%s) : (tensor<bf16>) -> ()
  }) : (tensor<2x4x8xbf16>) -> tensor<2x4x8xbf16>
  "func.return"(%y) : (tensor<2x4x8xbf16>) -> ()
}) : () -> ()
