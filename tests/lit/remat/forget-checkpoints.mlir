// What jax.checkpoint computes again gives way to what it is the same as.
// RUN: farrier-opt %s --split-input-file --farrier-forget-checkpoints --mlir-print-op-generic | FileCheck %s

// CHECK-LABEL: sym_name = "straight"
// CHECK: %[[H:.*]] = "stablehlo.dot_general"(%arg0, %arg1)
// CHECK-NOT: stablehlo.optimization_barrier
// CHECK-NOT: stablehlo.dot_general
// CHECK: "stablehlo.multiply"(%arg2, %[[H]])
"func.func"() <{function_type = (tensor<4x4xf32>, tensor<4x4xf32>, tensor<4x4xf32>) -> (tensor<4x4xf32>, tensor<4x4xf32>), sym_name = "straight"}> ({
^bb0(%x: tensor<4x4xf32>, %w: tensor<4x4xf32>, %dy: tensor<4x4xf32>):
  %h = "stablehlo.dot_general"(%x, %w) <{dot_dimension_numbers = #stablehlo.dot<lhs_contracting_dimensions = [1], rhs_contracting_dimensions = [0]>}> : (tensor<4x4xf32>, tensor<4x4xf32>) -> tensor<4x4xf32>
  %y = "stablehlo.tanh"(%h) : (tensor<4x4xf32>) -> tensor<4x4xf32>
  %k:2 = "stablehlo.optimization_barrier"(%x, %dy) : (tensor<4x4xf32>, tensor<4x4xf32>) -> (tensor<4x4xf32>, tensor<4x4xf32>)
  %again = "stablehlo.dot_general"(%k#0, %w) <{dot_dimension_numbers = #stablehlo.dot<lhs_contracting_dimensions = [1], rhs_contracting_dimensions = [0]>}> : (tensor<4x4xf32>, tensor<4x4xf32>) -> tensor<4x4xf32>
  %dh = "stablehlo.multiply"(%k#1, %again) : (tensor<4x4xf32>, tensor<4x4xf32>) -> tensor<4x4xf32>
  "func.return"(%y, %dh) : (tensor<4x4xf32>, tensor<4x4xf32>) -> ()
}) : () -> ()

// -----

// A barrier behind which nothing is computed again is the program's own; so is one that gathered weights are behind, which
// are gathered again for the sake of memory.
// CHECK-LABEL: sym_name = "kept"
// CHECK: "stablehlo.tanh"
// CHECK: %[[OWN:.*]]:2 = "stablehlo.optimization_barrier"
// CHECK: "stablehlo.cosine"(%[[OWN]]#0)
// CHECK: "stablehlo.all_gather"
// CHECK: %[[HELD:.*]]:2 = "stablehlo.optimization_barrier"(%arg0, %arg1)
// CHECK: "stablehlo.all_gather"(%[[HELD]]#1)
// CHECK: "stablehlo.negate"(%[[HELD]]#0)
"func.func"() <{function_type = (tensor<4x4xf32>, tensor<2x4xf32>) -> (tensor<4x4xf32>, tensor<4x4xf32>), sym_name = "kept"}> ({
^bb0(%x: tensor<4x4xf32>, %w: tensor<2x4xf32>):
  %t = "stablehlo.tanh"(%x) : (tensor<4x4xf32>) -> tensor<4x4xf32>
  %own:2 = "stablehlo.optimization_barrier"(%t, %x) : (tensor<4x4xf32>, tensor<4x4xf32>) -> (tensor<4x4xf32>, tensor<4x4xf32>)
  %c = "stablehlo.cosine"(%own#0) : (tensor<4x4xf32>) -> tensor<4x4xf32>
  %n = "stablehlo.negate"(%x) : (tensor<4x4xf32>) -> tensor<4x4xf32>
  %g = "stablehlo.all_gather"(%w) <{all_gather_dim = 0 : i64, replica_groups = dense<[[0, 1]]> : tensor<1x2xi64>}> : (tensor<2x4xf32>) -> tensor<4x4xf32>
  %a = "stablehlo.add"(%n, %g) : (tensor<4x4xf32>, tensor<4x4xf32>) -> tensor<4x4xf32>
  %k:2 = "stablehlo.optimization_barrier"(%x, %w) : (tensor<4x4xf32>, tensor<2x4xf32>) -> (tensor<4x4xf32>, tensor<2x4xf32>)
  %g2 = "stablehlo.all_gather"(%k#1) <{all_gather_dim = 0 : i64, replica_groups = dense<[[0, 1]]> : tensor<1x2xi64>}> : (tensor<2x4xf32>) -> tensor<4x4xf32>
  %n2 = "stablehlo.negate"(%k#0) : (tensor<4x4xf32>) -> tensor<4x4xf32>
  %b = "stablehlo.subtract"(%n2, %g2) : (tensor<4x4xf32>, tensor<4x4xf32>) -> tensor<4x4xf32>
  %r = "stablehlo.add"(%a, %c) : (tensor<4x4xf32>, tensor<4x4xf32>) -> tensor<4x4xf32>
  "func.return"(%r, %b) : (tensor<4x4xf32>, tensor<4x4xf32>) -> ()
}) : () -> ()

// -----

// Operands count in their places: slices at [0, i, 0] and at [0, 0, i] are two.
// CHECK-LABEL: sym_name = "places"
// CHECK: "stablehlo.dynamic_slice"
// CHECK: "stablehlo.dynamic_slice"
"func.func"() <{function_type = (tensor<4x4x4xf32>, tensor<i32>) -> (tensor<1x1x1xf32>, tensor<1x1x1xf32>), sym_name = "places"}> ({
^bb0(%x: tensor<4x4x4xf32>, %i: tensor<i32>):
  %z = "stablehlo.constant"() <{value = dense<0> : tensor<i32>}> : () -> tensor<i32>
  %a = "stablehlo.dynamic_slice"(%x, %z, %i, %z) <{slice_sizes = array<i64: 1, 1, 1>}> : (tensor<4x4x4xf32>, tensor<i32>, tensor<i32>, tensor<i32>) -> tensor<1x1x1xf32>
  %k = "stablehlo.optimization_barrier"(%x) : (tensor<4x4x4xf32>) -> tensor<4x4x4xf32>
  %b = "stablehlo.dynamic_slice"(%k, %z, %z, %i) <{slice_sizes = array<i64: 1, 1, 1>}> : (tensor<4x4x4xf32>, tensor<i32>, tensor<i32>, tensor<i32>) -> tensor<1x1x1xf32>
  "func.return"(%a, %b) : (tensor<1x1x1xf32>, tensor<1x1x1xf32>) -> ()
}) : () -> ()

// -----

// The second loop gives what the first does, in another place, and a stack besides: it takes the place of the first.
// CHECK-LABEL: sym_name = "wide"
// CHECK: %[[W:.*]]:4 = "stablehlo.while"
// CHECK-COUNT-2: "stablehlo.dynamic_update_slice"
// CHECK-NOT: stablehlo.while
// CHECK: "func.return"(%[[W]]#1, %[[W]]#3, %[[W]]#2)
"func.func"() <{function_type = (tensor<2xf32>) -> (tensor<2xf32>, tensor<4x2xf32>, tensor<4x2xf32>), sym_name = "wide"}> ({
^bb0(%x: tensor<2xf32>):
  %zero = "stablehlo.constant"() <{value = dense<0> : tensor<i32>}> : () -> tensor<i32>
  %fzero = "stablehlo.constant"() <{value = dense<0.0> : tensor<f32>}> : () -> tensor<f32>
  %empty = "stablehlo.broadcast_in_dim"(%fzero) <{broadcast_dimensions = array<i64>}> : (tensor<f32>) -> tensor<4x2xf32>
  %n:3 = "stablehlo.while"(%zero, %x, %empty) ({
  ^bb0(%i: tensor<i32>, %c: tensor<2xf32>, %s: tensor<4x2xf32>):
    %e = "stablehlo.constant"() <{value = dense<4> : tensor<i32>}> : () -> tensor<i32>
    %p = "stablehlo.compare"(%i, %e) <{comparison_direction = #stablehlo<comparison_direction LT>}> : (tensor<i32>, tensor<i32>) -> tensor<i1>
    "stablehlo.return"(%p) : (tensor<i1>) -> ()
  }, {
  ^bb0(%i: tensor<i32>, %c: tensor<2xf32>, %s: tensor<4x2xf32>):
    %z = "stablehlo.constant"() <{value = dense<0> : tensor<i32>}> : () -> tensor<i32>
    %one = "stablehlo.constant"() <{value = dense<1> : tensor<i32>}> : () -> tensor<i32>
    %t = "stablehlo.tanh"(%c) : (tensor<2xf32>) -> tensor<2xf32>
    %u = "stablehlo.reshape"(%t) : (tensor<2xf32>) -> tensor<1x2xf32>
    %d = "stablehlo.dynamic_update_slice"(%s, %u, %i, %z) : (tensor<4x2xf32>, tensor<1x2xf32>, tensor<i32>, tensor<i32>) -> tensor<4x2xf32>
    %j = "stablehlo.add"(%i, %one) : (tensor<i32>, tensor<i32>) -> tensor<i32>
    "stablehlo.return"(%j, %t, %d) : (tensor<i32>, tensor<2xf32>, tensor<4x2xf32>) -> ()
  }) : (tensor<i32>, tensor<2xf32>, tensor<4x2xf32>) -> (tensor<i32>, tensor<2xf32>, tensor<4x2xf32>)
  %k = "stablehlo.optimization_barrier"(%x) : (tensor<2xf32>) -> tensor<2xf32>
  %fresh = "stablehlo.broadcast_in_dim"(%fzero) <{broadcast_dimensions = array<i64>}> : (tensor<f32>) -> tensor<4x2xf32>
  %w:4 = "stablehlo.while"(%zero, %k, %fresh, %fresh) ({
  ^bb0(%i: tensor<i32>, %c: tensor<2xf32>, %r: tensor<4x2xf32>, %s: tensor<4x2xf32>):
    %e = "stablehlo.constant"() <{value = dense<4> : tensor<i32>}> : () -> tensor<i32>
    %p = "stablehlo.compare"(%i, %e) <{comparison_direction = #stablehlo<comparison_direction LT>}> : (tensor<i32>, tensor<i32>) -> tensor<i1>
    "stablehlo.return"(%p) : (tensor<i1>) -> ()
  }, {
  ^bb0(%i: tensor<i32>, %c: tensor<2xf32>, %r: tensor<4x2xf32>, %s: tensor<4x2xf32>):
    %z = "stablehlo.constant"() <{value = dense<0> : tensor<i32>}> : () -> tensor<i32>
    %one = "stablehlo.constant"() <{value = dense<1> : tensor<i32>}> : () -> tensor<i32>
    %before = "stablehlo.reshape"(%c) : (tensor<2xf32>) -> tensor<1x2xf32>
    %dr = "stablehlo.dynamic_update_slice"(%r, %before, %i, %z) : (tensor<4x2xf32>, tensor<1x2xf32>, tensor<i32>, tensor<i32>) -> tensor<4x2xf32>
    %t = "stablehlo.tanh"(%c) : (tensor<2xf32>) -> tensor<2xf32>
    %u = "stablehlo.reshape"(%t) : (tensor<2xf32>) -> tensor<1x2xf32>
    %d = "stablehlo.dynamic_update_slice"(%s, %u, %i, %z) : (tensor<4x2xf32>, tensor<1x2xf32>, tensor<i32>, tensor<i32>) -> tensor<4x2xf32>
    %j = "stablehlo.add"(%i, %one) : (tensor<i32>, tensor<i32>) -> tensor<i32>
    "stablehlo.return"(%j, %t, %dr, %d) : (tensor<i32>, tensor<2xf32>, tensor<4x2xf32>, tensor<4x2xf32>) -> ()
  }) : (tensor<i32>, tensor<2xf32>, tensor<4x2xf32>, tensor<4x2xf32>) -> (tensor<i32>, tensor<2xf32>, tensor<4x2xf32>, tensor<4x2xf32>)
  "func.return"(%n#1, %n#2, %w#2) : (tensor<2xf32>, tensor<4x2xf32>, tensor<4x2xf32>) -> ()
}) : () -> ()
