// Two layers, 16 KiB a value, and a loss of 128 KiB whose working memory is the peak. With 200 kB the first activation is
// computed again behind that peak; with 185 kB its product is, too, which takes memory where there is plenty.
// The activation reads its operand twice, as GELU does: a product's kernel does not compute it.
// RUN: farrier-opt %s --farrier-remat="budget=200000 small-bytes=1024" --mlir-print-op-generic | FileCheck %s
// RUN: farrier-opt %s --farrier-remat="budget=185000 small-bytes=1024" --mlir-print-op-generic | FileCheck %s --check-prefix=TIGHT

// CHECK: %[[H0:[0-9]+]] = "stablehlo.dot_general"(%arg0, %arg1)
// CHECK: "stablehlo.dot_general"(%{{[0-9]+}}, %arg3)
// CHECK: %[[D1:[0-9]+]] = "stablehlo.multiply"
// CHECK: %[[D1:[0-9]+]] = "stablehlo.multiply"
// CHECK-NEXT: %[[KEPT:[0-9]+]]:2 = "stablehlo.optimization_barrier"(%[[H0]], %[[D1]])
// CHECK-NEXT: %[[A0:[0-9]+]] = "stablehlo.atan2"(%[[KEPT]]#0, %[[KEPT]]#0)
// CHECK-NEXT: "stablehlo.dot_general"(%[[A0]], %[[KEPT]]#1)

// TIGHT: %[[KEPT:[0-9]+]]:3 = "stablehlo.optimization_barrier"(%arg0, %arg1, %{{[0-9]+}})
// TIGHT-NEXT: %[[H0:[0-9]+]] = "stablehlo.dot_general"(%[[KEPT]]#0, %[[KEPT]]#1)
// TIGHT-NEXT: %[[A0:[0-9]+]] = "stablehlo.atan2"(%[[H0]], %[[H0]])
// TIGHT-NEXT: "stablehlo.dot_general"(%[[A0]], %[[KEPT]]#2)
"builtin.module"() ({
  "func.func"() <{function_type = (tensor<64x64xf32>, tensor<64x64xf32>, tensor<64x64xf32>, tensor<64x512xf32>) -> (tensor<64x64xf32>, tensor<64x64xf32>, tensor<64x512xf32>), sym_name = "main"}> ({
  ^bb0(%x: tensor<64x64xf32>, %w0: tensor<64x64xf32>, %w1: tensor<64x64xf32>, %w2: tensor<64x512xf32>):
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
    "func.return"(%g0, %g1, %g2) : (tensor<64x64xf32>, tensor<64x64xf32>, tensor<64x512xf32>) -> ()
  }) : () -> ()
}) : () -> ()
