// Three layers and their gradient, 16 KiB a value. With 66 kB for temporaries the first activation is computed again
// from its product, which stays; the barrier keeps XLA from merging the copy with the original.
// The activation reads its operand twice, as GELU does: a product's kernel does not compute it.
// RUN: farrier-opt %s --farrier-remat="budget=66000 small-bytes=1024" --mlir-print-op-generic | FileCheck %s
// 50 kB hold three values: the first layer's product is computed again from what it is given, as one segment has it,
// behind the gradient of the second.
// RUN: farrier-opt %s --farrier-remat="budget=50000 small-bytes=1024" --mlir-print-op-generic | FileCheck %s --check-prefix=LEAST
// A budget of a few bytes, out of reach, ends too: 16 bytes a value.
// RUN: sed s/64x64/2x2/g %s | farrier-opt --farrier-remat="budget=8 small-bytes=1" | FileCheck %s --check-prefix=TINY
// A budget that is kept anyway changes nothing.
// RUN: farrier-opt %s --farrier-remat="budget=100000000 small-bytes=1024" --mlir-print-op-generic | FileCheck %s --check-prefix=SAME

// CHECK: %[[H0:[0-9]+]] = "stablehlo.dot_general"(%arg0, %arg1)
// CHECK: %[[A0:[0-9]+]] = "stablehlo.atan2"(%[[H0]], %[[H0]])
// CHECK: %[[H1:[0-9]+]] = "stablehlo.dot_general"(%[[A0]], %arg2)
// CHECK: %[[G1:[0-9]+]] = "stablehlo.multiply"
// CHECK: %[[G1:[0-9]+]] = "stablehlo.multiply"
// CHECK-NEXT: %[[KEPT:[0-9]+]]:2 = "stablehlo.optimization_barrier"(%[[H0]], %[[G1]])
// CHECK-NEXT: %[[AGAIN0:[0-9]+]] = "stablehlo.atan2"(%[[KEPT]]#0, %[[KEPT]]#0)
// CHECK-NEXT: "stablehlo.dot_general"(%[[AGAIN0]], %[[KEPT]]#1)

// LEAST: %[[H0:[0-9]+]] = "stablehlo.dot_general"(%arg0, %arg1)
// LEAST: "stablehlo.atan2"(%[[H0]], %[[H0]])
// LEAST: %[[LATE:[0-9]+]]:3 = "stablehlo.optimization_barrier"(%arg0, %arg1, %[[GRADIENT:[0-9]+]])
// LEAST: %[[AGAIN:[0-9]+]] = "stablehlo.dot_general"(%[[LATE]]#0, %[[LATE]]#1)
// LEAST: "stablehlo.cosine"(%[[AGAIN]])
// LEAST-NOT: %[[H0]]

// TINY: func.func

// SAME-NOT: stablehlo.optimization_barrier
"builtin.module"() ({
  "func.func"() <{function_type = (tensor<64x64xf32>, tensor<64x64xf32>, tensor<64x64xf32>, tensor<64x64xf32>) -> (tensor<64x64xf32>, tensor<64x64xf32>, tensor<64x64xf32>), sym_name = "main"}> ({
  ^bb0(%x: tensor<64x64xf32>, %w0: tensor<64x64xf32>, %w1: tensor<64x64xf32>, %w2: tensor<64x64xf32>):
    %h0 = "stablehlo.dot_general"(%x, %w0) <{dot_dimension_numbers = #stablehlo.dot<lhs_contracting_dimensions = [1], rhs_contracting_dimensions = [0]>}> : (tensor<64x64xf32>, tensor<64x64xf32>) -> tensor<64x64xf32>
    %a0 = "stablehlo.atan2"(%h0, %h0) : (tensor<64x64xf32>, tensor<64x64xf32>) -> tensor<64x64xf32>
    %h1 = "stablehlo.dot_general"(%a0, %w1) <{dot_dimension_numbers = #stablehlo.dot<lhs_contracting_dimensions = [1], rhs_contracting_dimensions = [0]>}> : (tensor<64x64xf32>, tensor<64x64xf32>) -> tensor<64x64xf32>
    %a1 = "stablehlo.atan2"(%h1, %h1) : (tensor<64x64xf32>, tensor<64x64xf32>) -> tensor<64x64xf32>
    %h2 = "stablehlo.dot_general"(%a1, %w2) <{dot_dimension_numbers = #stablehlo.dot<lhs_contracting_dimensions = [1], rhs_contracting_dimensions = [0]>}> : (tensor<64x64xf32>, tensor<64x64xf32>) -> tensor<64x64xf32>
    %a2 = "stablehlo.atan2"(%h2, %h2) : (tensor<64x64xf32>, tensor<64x64xf32>) -> tensor<64x64xf32>
    // The backward part.
    %s2 = "stablehlo.cosine"(%h2) : (tensor<64x64xf32>) -> tensor<64x64xf32>
    %d2 = "stablehlo.multiply"(%a2, %s2) : (tensor<64x64xf32>, tensor<64x64xf32>) -> tensor<64x64xf32>
    %g2 = "stablehlo.dot_general"(%a1, %d2) <{dot_dimension_numbers = #stablehlo.dot<lhs_contracting_dimensions = [0], rhs_contracting_dimensions = [0]>}> : (tensor<64x64xf32>, tensor<64x64xf32>) -> tensor<64x64xf32>
    %e1 = "stablehlo.dot_general"(%d2, %w2) <{dot_dimension_numbers = #stablehlo.dot<lhs_contracting_dimensions = [1], rhs_contracting_dimensions = [1]>}> : (tensor<64x64xf32>, tensor<64x64xf32>) -> tensor<64x64xf32>
    %s1 = "stablehlo.cosine"(%h1) : (tensor<64x64xf32>) -> tensor<64x64xf32>
    %d1 = "stablehlo.multiply"(%e1, %s1) : (tensor<64x64xf32>, tensor<64x64xf32>) -> tensor<64x64xf32>
    %g1 = "stablehlo.dot_general"(%a0, %d1) <{dot_dimension_numbers = #stablehlo.dot<lhs_contracting_dimensions = [0], rhs_contracting_dimensions = [0]>}> : (tensor<64x64xf32>, tensor<64x64xf32>) -> tensor<64x64xf32>
    %e0 = "stablehlo.dot_general"(%d1, %w1) <{dot_dimension_numbers = #stablehlo.dot<lhs_contracting_dimensions = [1], rhs_contracting_dimensions = [1]>}> : (tensor<64x64xf32>, tensor<64x64xf32>) -> tensor<64x64xf32>
    %s0 = "stablehlo.cosine"(%h0) : (tensor<64x64xf32>) -> tensor<64x64xf32>
    %d0 = "stablehlo.multiply"(%e0, %s0) : (tensor<64x64xf32>, tensor<64x64xf32>) -> tensor<64x64xf32>
    %g0 = "stablehlo.dot_general"(%x, %d0) <{dot_dimension_numbers = #stablehlo.dot<lhs_contracting_dimensions = [0], rhs_contracting_dimensions = [0]>}> : (tensor<64x64xf32>, tensor<64x64xf32>) -> tensor<64x64xf32>
    "func.return"(%g0, %g1, %g2) : (tensor<64x64xf32>, tensor<64x64xf32>, tensor<64x64xf32>) -> ()
  }) : () -> ()
}) : () -> ()
