// An embedding's gradient: rewritten, the zeros that it adds to are written when its updates are there, not before. They
// bring the program to its peak, so what weight gradients read must be gone by then: the scatter waits for those, too. As
// the program stands nothing changes.
// The activation reads its operand twice, as GELU does: a product's kernel does not compute it.
// RUN: farrier-opt %s --farrier-remat="budget=200000 small-bytes=1024" --mlir-print-op-generic | FileCheck %s
// RUN: farrier-opt %s --farrier-remat="budget=100000000 small-bytes=1024" --mlir-print-op-generic | FileCheck %s --check-prefix=SAME

// CHECK: %[[DX:[0-9]+]] = "stablehlo.dot_general"(%{{[0-9]+}}, %arg1)
// CHECK-NEXT: %[[ZERO:[0-9]+]] = "stablehlo.constant"
// CHECK-NEXT: %[[DONE:[0-9]+]]:4 = "stablehlo.optimization_barrier"({{.*}}, %[[DX]])
// CHECK-NEXT: %[[LATE:[0-9]+]]:2 = "stablehlo.optimization_barrier"(%[[ZERO]], %[[DONE]]#3)
// CHECK-NEXT: %[[NX:[0-9]+]] = "stablehlo.negate"(%[[LATE]]#1)
// CHECK: %[[ZEROS:[0-9]+]] = "stablehlo.broadcast_in_dim"(%[[LATE]]#0)
// CHECK-NEXT: "stablehlo.scatter"(%[[ZEROS]], %arg4, %[[NX]])

// SAME-NOT: stablehlo.optimization_barrier
"builtin.module"() ({
  "func.func"() <{function_type = (tensor<64x64xf32>, tensor<64x64xf32>, tensor<64x64xf32>, tensor<64x512xf32>, tensor<64x1xi32>) -> (tensor<64x64xf32>, tensor<64x64xf32>, tensor<64x512xf32>, tensor<256x64xf32>), sym_name = "main"}> ({
  ^bb0(%x: tensor<64x64xf32>, %w0: tensor<64x64xf32>, %w1: tensor<64x64xf32>, %w2: tensor<64x512xf32>, %ids: tensor<64x1xi32>):
    %h0 = "stablehlo.dot_general"(%x, %w0) <{dot_dimension_numbers = #stablehlo.dot<lhs_contracting_dimensions = [1], rhs_contracting_dimensions = [0]>}> : (tensor<64x64xf32>, tensor<64x64xf32>) -> tensor<64x64xf32>
    %a0 = "stablehlo.atan2"(%h0, %h0) : (tensor<64x64xf32>, tensor<64x64xf32>) -> tensor<64x64xf32>
    %h1 = "stablehlo.dot_general"(%a0, %w1) <{dot_dimension_numbers = #stablehlo.dot<lhs_contracting_dimensions = [1], rhs_contracting_dimensions = [0]>}> : (tensor<64x64xf32>, tensor<64x64xf32>) -> tensor<64x64xf32>
    %a1 = "stablehlo.atan2"(%h1, %h1) : (tensor<64x64xf32>, tensor<64x64xf32>) -> tensor<64x64xf32>
    %l = "stablehlo.dot_general"(%a1, %w2) <{dot_dimension_numbers = #stablehlo.dot<lhs_contracting_dimensions = [1], rhs_contracting_dimensions = [0]>}> : (tensor<64x64xf32>, tensor<64x512xf32>) -> tensor<64x512xf32>
    %c = "stablehlo.cosine"(%l) : (tensor<64x512xf32>) -> tensor<64x512xf32>
    %dl = "stablehlo.multiply"(%l, %c) : (tensor<64x512xf32>, tensor<64x512xf32>) -> tensor<64x512xf32>
    // The backward part.
    %e1 = "stablehlo.dot_general"(%dl, %w2) <{dot_dimension_numbers = #stablehlo.dot<lhs_contracting_dimensions = [1], rhs_contracting_dimensions = [1]>}> : (tensor<64x512xf32>, tensor<64x512xf32>) -> tensor<64x64xf32>
    %g2 = "stablehlo.dot_general"(%a1, %dl) <{dot_dimension_numbers = #stablehlo.dot<lhs_contracting_dimensions = [0], rhs_contracting_dimensions = [0]>}> : (tensor<64x64xf32>, tensor<64x512xf32>) -> tensor<64x512xf32>
    %s1 = "stablehlo.cosine"(%h1) : (tensor<64x64xf32>) -> tensor<64x64xf32>
    %d1 = "stablehlo.multiply"(%e1, %s1) : (tensor<64x64xf32>, tensor<64x64xf32>) -> tensor<64x64xf32>
    %g1 = "stablehlo.dot_general"(%a0, %d1) <{dot_dimension_numbers = #stablehlo.dot<lhs_contracting_dimensions = [0], rhs_contracting_dimensions = [0]>}> : (tensor<64x64xf32>, tensor<64x64xf32>) -> tensor<64x64xf32>
    %e0 = "stablehlo.dot_general"(%d1, %w1) <{dot_dimension_numbers = #stablehlo.dot<lhs_contracting_dimensions = [1], rhs_contracting_dimensions = [1]>}> : (tensor<64x64xf32>, tensor<64x64xf32>) -> tensor<64x64xf32>
    %s0 = "stablehlo.cosine"(%h0) : (tensor<64x64xf32>) -> tensor<64x64xf32>
    %d0 = "stablehlo.multiply"(%e0, %s0) : (tensor<64x64xf32>, tensor<64x64xf32>) -> tensor<64x64xf32>
    %g0 = "stablehlo.dot_general"(%x, %d0) <{dot_dimension_numbers = #stablehlo.dot<lhs_contracting_dimensions = [0], rhs_contracting_dimensions = [0]>}> : (tensor<64x64xf32>, tensor<64x64xf32>) -> tensor<64x64xf32>
    %dx = "stablehlo.dot_general"(%d0, %w0) <{dot_dimension_numbers = #stablehlo.dot<lhs_contracting_dimensions = [1], rhs_contracting_dimensions = [1]>}> : (tensor<64x64xf32>, tensor<64x64xf32>) -> tensor<64x64xf32>
    %nx = "stablehlo.negate"(%dx) : (tensor<64x64xf32>) -> tensor<64x64xf32>
    %zero = "stablehlo.constant"() <{value = dense<0.0> : tensor<f32>}> : () -> tensor<f32>
    %zeros = "stablehlo.broadcast_in_dim"(%zero) <{broadcast_dimensions = array<i64>}> : (tensor<f32>) -> tensor<256x64xf32>
    %gx = "stablehlo.scatter"(%zeros, %ids, %nx) <{indices_are_sorted = false, scatter_dimension_numbers = #stablehlo.scatter<update_window_dims = [1], inserted_window_dims = [0], scatter_dims_to_operand_dims = [0], index_vector_dim = 1>, unique_indices = false}> ({
    ^bb0(%a: tensor<f32>, %b: tensor<f32>):
      %s = "stablehlo.add"(%a, %b) : (tensor<f32>, tensor<f32>) -> tensor<f32>
      "stablehlo.return"(%s) : (tensor<f32>) -> ()
    }) : (tensor<256x64xf32>, tensor<64x1xi32>, tensor<64x64xf32>) -> tensor<256x64xf32>
    "func.return"(%g0, %g1, %g2, %gx) : (tensor<64x64xf32>, tensor<64x64xf32>, tensor<64x512xf32>, tensor<256x64xf32>) -> ()
  }) : () -> ()
}) : () -> ()
