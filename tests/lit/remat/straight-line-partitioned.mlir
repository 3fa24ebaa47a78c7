// Activations and the loss read their operand twice, as GELU does: a product's kernel does not compute them.
// A program for eight devices. What is computed again reads small parameters where they are: tied to its stage, a norm's
// scale would be gathered again there. The product whose operand is much bigger than what it makes, the head's gradient, is
// finished before the first stage of the layers; XLA would put it off, and hold the logits' gradient.
// RUN: farrier-opt %s --farrier-remat="budget=1400000 small-bytes=1024" --mlir-print-op-generic | FileCheck %s
// On one device the scale is tied as other values are, and XLA does not put gradients off.
// RUN: sed s/num_partitions/num_replicas/ %s | farrier-opt --farrier-remat="budget=1400000 small-bytes=1024" --mlir-print-op-generic | FileCheck %s --check-prefix=ONE

// CHECK: %[[SCALE:[0-9]+]] = "stablehlo.broadcast_in_dim"(%arg4)
// CHECK: %[[DL:[0-9]+]] = "stablehlo.power"
// CHECK-NEXT: "stablehlo.dot_general"(%[[DL]], %arg3)
// CHECK: %[[GRADIENT:[0-9]+]] = "stablehlo.dot_general"(%{{[0-9]+}}, %[[DL]])
// CHECK: %[[FIRST:[0-9]+]]:2 = "stablehlo.optimization_barrier"(%[[GRADIENT]], %[[D:[0-9]+]])
// CHECK-NEXT: %[[STAGE:[0-9]+]]:3 = "stablehlo.optimization_barrier"(%arg0, %arg1, %[[FIRST]]#1)
// CHECK-NEXT: "stablehlo.dot_general"(%[[STAGE]]#0, %[[STAGE]]#1)
// CHECK-NOT: stablehlo.broadcast_in_dim
// CHECK: "stablehlo.multiply"(%{{[0-9]+}}, %[[SCALE]])
// CHECK: "func.return"(%{{[0-9]+}}, %{{[0-9]+}}, %[[FIRST]]#0)

// ONE: %[[STAGE:[0-9]+]]:4 = "stablehlo.optimization_barrier"(%arg0, %arg1, %arg4, %{{[0-9]+}})
// ONE: "stablehlo.broadcast_in_dim"(%[[STAGE]]#2)
// ONE-NOT: stablehlo.optimization_barrier
"builtin.module"() ({
  "func.func"() <{function_type = (tensor<512x64xf32>, tensor<64x64xf32>, tensor<64x64xf32>, tensor<64x512xf32>, tensor<64xf32>) -> (tensor<64x64xf32>, tensor<64x64xf32>, tensor<64x512xf32>), sym_name = "main"}> ({
  ^bb0(%x: tensor<512x64xf32>, %w0: tensor<64x64xf32>, %w1: tensor<64x64xf32>, %w2: tensor<64x512xf32>, %scale: tensor<64xf32>):
    %s = "stablehlo.broadcast_in_dim"(%scale) <{broadcast_dimensions = array<i64: 1>}> : (tensor<64xf32>) -> tensor<512x64xf32>
    %h0 = "stablehlo.dot_general"(%x, %w0) <{dot_dimension_numbers = #stablehlo.dot<lhs_contracting_dimensions = [1], rhs_contracting_dimensions = [0]>}> : (tensor<512x64xf32>, tensor<64x64xf32>) -> tensor<512x64xf32>
    %t0 = "stablehlo.atan2"(%h0, %h0) : (tensor<512x64xf32>, tensor<512x64xf32>) -> tensor<512x64xf32>
    %a0 = "stablehlo.multiply"(%t0, %s) : (tensor<512x64xf32>, tensor<512x64xf32>) -> tensor<512x64xf32>
    %h1 = "stablehlo.dot_general"(%a0, %w1) <{dot_dimension_numbers = #stablehlo.dot<lhs_contracting_dimensions = [1], rhs_contracting_dimensions = [0]>}> : (tensor<512x64xf32>, tensor<64x64xf32>) -> tensor<512x64xf32>
    %t1 = "stablehlo.atan2"(%h1, %h1) : (tensor<512x64xf32>, tensor<512x64xf32>) -> tensor<512x64xf32>
    %a1 = "stablehlo.multiply"(%t1, %s) : (tensor<512x64xf32>, tensor<512x64xf32>) -> tensor<512x64xf32>
    %l = "stablehlo.dot_general"(%a1, %w2) <{dot_dimension_numbers = #stablehlo.dot<lhs_contracting_dimensions = [1], rhs_contracting_dimensions = [0]>}> : (tensor<512x64xf32>, tensor<64x512xf32>) -> tensor<512x512xf32>
    %dl = "stablehlo.power"(%l, %l) : (tensor<512x512xf32>, tensor<512x512xf32>) -> tensor<512x512xf32>
    // The backward part.
    %e1 = "stablehlo.dot_general"(%dl, %w2) <{dot_dimension_numbers = #stablehlo.dot<lhs_contracting_dimensions = [1], rhs_contracting_dimensions = [1]>}> : (tensor<512x512xf32>, tensor<64x512xf32>) -> tensor<512x64xf32>
    %g2 = "stablehlo.dot_general"(%a1, %dl) <{dot_dimension_numbers = #stablehlo.dot<lhs_contracting_dimensions = [0], rhs_contracting_dimensions = [0]>}> : (tensor<512x64xf32>, tensor<512x512xf32>) -> tensor<64x512xf32>
    %c1 = "stablehlo.cosine"(%h1) : (tensor<512x64xf32>) -> tensor<512x64xf32>
    %d1 = "stablehlo.multiply"(%e1, %c1) : (tensor<512x64xf32>, tensor<512x64xf32>) -> tensor<512x64xf32>
    %g1 = "stablehlo.dot_general"(%a0, %d1) <{dot_dimension_numbers = #stablehlo.dot<lhs_contracting_dimensions = [0], rhs_contracting_dimensions = [0]>}> : (tensor<512x64xf32>, tensor<512x64xf32>) -> tensor<64x64xf32>
    %e0 = "stablehlo.dot_general"(%d1, %w1) <{dot_dimension_numbers = #stablehlo.dot<lhs_contracting_dimensions = [1], rhs_contracting_dimensions = [1]>}> : (tensor<512x64xf32>, tensor<64x64xf32>) -> tensor<512x64xf32>
    %c0 = "stablehlo.cosine"(%h0) : (tensor<512x64xf32>) -> tensor<512x64xf32>
    %d0 = "stablehlo.multiply"(%e0, %c0) : (tensor<512x64xf32>, tensor<512x64xf32>) -> tensor<512x64xf32>
    %g0 = "stablehlo.dot_general"(%x, %d0) <{dot_dimension_numbers = #stablehlo.dot<lhs_contracting_dimensions = [0], rhs_contracting_dimensions = [0]>}> : (tensor<512x64xf32>, tensor<512x64xf32>) -> tensor<64x64xf32>
    "func.return"(%g0, %g1, %g2) : (tensor<64x64xf32>, tensor<64x64xf32>, tensor<64x512xf32>) -> ()
  }) : () -> ()
}) {mhlo.num_partitions = 8 : i32} : () -> ()
