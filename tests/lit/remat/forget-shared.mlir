// Products that two loops compute of the same rows are kept by the first, where that is asked for.
// RUN: farrier-opt %s --farrier-forget-checkpoints=shared=true --mlir-print-op-generic | FileCheck %s
// RUN: farrier-opt %s --farrier-forget-checkpoints --mlir-print-op-generic | FileCheck %s --check-prefix=APART

// The second loop has the operands of the first one's product, in reverse: the first writes it to a stack.
// CHECK-LABEL: sym_name = "shared"
// APART: "stablehlo.dot_general"
// APART: "stablehlo.dot_general"
// CHECK: %[[F:.*]]:[[#]] = "stablehlo.while"
// CHECK: %[[H:.*]] = "stablehlo.dot_general"
// CHECK-COUNT-2: "stablehlo.dynamic_update_slice"
// CHECK: "stablehlo.while"({{.*}}%[[F]]#
// CHECK-NOT: stablehlo.dot_general
// CHECK: "func.return"
"func.func"() <{function_type = (tensor<4x8x8xf32>, tensor<8x8xf32>, tensor<4x8x8xf32>) -> (tensor<4x8x8xf32>, tensor<8x8xf32>), sym_name = "shared"}> ({
^bb0(%x: tensor<4x8x8xf32>, %w: tensor<8x8xf32>, %dy: tensor<4x8x8xf32>):
  %zero = "stablehlo.constant"() <{value = dense<0> : tensor<i32>}> : () -> tensor<i32>
  %fzero = "stablehlo.constant"() <{value = dense<0.0> : tensor<f32>}> : () -> tensor<f32>
  %empty = "stablehlo.broadcast_in_dim"(%fzero) <{broadcast_dimensions = array<i64>}> : (tensor<f32>) -> tensor<4x8x8xf32>
  %none = "stablehlo.broadcast_in_dim"(%fzero) <{broadcast_dimensions = array<i64>}> : (tensor<f32>) -> tensor<8x8xf32>
  %f:4 = "stablehlo.while"(%zero, %x, %w, %empty) ({
  ^bb0(%i: tensor<i32>, %xs: tensor<4x8x8xf32>, %v: tensor<8x8xf32>, %s: tensor<4x8x8xf32>):
    %e = "stablehlo.constant"() <{value = dense<4> : tensor<i32>}> : () -> tensor<i32>
    %p = "stablehlo.compare"(%i, %e) <{comparison_direction = #stablehlo<comparison_direction LT>}> : (tensor<i32>, tensor<i32>) -> tensor<i1>
    "stablehlo.return"(%p) : (tensor<i1>) -> ()
  }, {
  ^bb0(%i: tensor<i32>, %xs: tensor<4x8x8xf32>, %v: tensor<8x8xf32>, %s: tensor<4x8x8xf32>):
    %z = "stablehlo.constant"() <{value = dense<0> : tensor<i32>}> : () -> tensor<i32>
    %one = "stablehlo.constant"() <{value = dense<1> : tensor<i32>}> : () -> tensor<i32>
    %a = "stablehlo.dynamic_slice"(%xs, %i, %z, %z) <{slice_sizes = array<i64: 1, 8, 8>}> : (tensor<4x8x8xf32>, tensor<i32>, tensor<i32>, tensor<i32>) -> tensor<1x8x8xf32>
    %b = "stablehlo.reshape"(%a) : (tensor<1x8x8xf32>) -> tensor<8x8xf32>
    %h = "stablehlo.dot_general"(%b, %v) <{dot_dimension_numbers = #stablehlo.dot<lhs_contracting_dimensions = [1], rhs_contracting_dimensions = [0]>}> : (tensor<8x8xf32>, tensor<8x8xf32>) -> tensor<8x8xf32>
    %t = "stablehlo.tanh"(%h) : (tensor<8x8xf32>) -> tensor<8x8xf32>
    %u = "stablehlo.reshape"(%t) : (tensor<8x8xf32>) -> tensor<1x8x8xf32>
    %d = "stablehlo.dynamic_update_slice"(%s, %u, %i, %z, %z) : (tensor<4x8x8xf32>, tensor<1x8x8xf32>, tensor<i32>, tensor<i32>, tensor<i32>) -> tensor<4x8x8xf32>
    %j = "stablehlo.add"(%i, %one) : (tensor<i32>, tensor<i32>) -> tensor<i32>
    "stablehlo.return"(%j, %xs, %v, %d) : (tensor<i32>, tensor<4x8x8xf32>, tensor<8x8xf32>, tensor<4x8x8xf32>) -> ()
  }) : (tensor<i32>, tensor<4x8x8xf32>, tensor<8x8xf32>, tensor<4x8x8xf32>) -> (tensor<i32>, tensor<4x8x8xf32>, tensor<8x8xf32>, tensor<4x8x8xf32>)
  %g:5 = "stablehlo.while"(%zero, %x, %w, %dy, %none) ({
  ^bb0(%i: tensor<i32>, %xs: tensor<4x8x8xf32>, %v: tensor<8x8xf32>, %ds: tensor<4x8x8xf32>, %c: tensor<8x8xf32>):
    %e = "stablehlo.constant"() <{value = dense<4> : tensor<i32>}> : () -> tensor<i32>
    %p = "stablehlo.compare"(%i, %e) <{comparison_direction = #stablehlo<comparison_direction LT>}> : (tensor<i32>, tensor<i32>) -> tensor<i1>
    "stablehlo.return"(%p) : (tensor<i1>) -> ()
  }, {
  ^bb0(%i: tensor<i32>, %xs: tensor<4x8x8xf32>, %v: tensor<8x8xf32>, %ds: tensor<4x8x8xf32>, %c: tensor<8x8xf32>):
    %z = "stablehlo.constant"() <{value = dense<0> : tensor<i32>}> : () -> tensor<i32>
    %one = "stablehlo.constant"() <{value = dense<1> : tensor<i32>}> : () -> tensor<i32>
    %last = "stablehlo.constant"() <{value = dense<3> : tensor<i32>}> : () -> tensor<i32>
    %k = "stablehlo.subtract"(%last, %i) : (tensor<i32>, tensor<i32>) -> tensor<i32>
    %a = "stablehlo.dynamic_slice"(%xs, %k, %z, %z) <{slice_sizes = array<i64: 1, 8, 8>}> : (tensor<4x8x8xf32>, tensor<i32>, tensor<i32>, tensor<i32>) -> tensor<1x8x8xf32>
    %b = "stablehlo.reshape"(%a) : (tensor<1x8x8xf32>) -> tensor<8x8xf32>
    %h = "stablehlo.dot_general"(%b, %v) <{dot_dimension_numbers = #stablehlo.dot<lhs_contracting_dimensions = [1], rhs_contracting_dimensions = [0]>}> : (tensor<8x8xf32>, tensor<8x8xf32>) -> tensor<8x8xf32>
    %dd = "stablehlo.dynamic_slice"(%ds, %k, %z, %z) <{slice_sizes = array<i64: 1, 8, 8>}> : (tensor<4x8x8xf32>, tensor<i32>, tensor<i32>, tensor<i32>) -> tensor<1x8x8xf32>
    %dr = "stablehlo.reshape"(%dd) : (tensor<1x8x8xf32>) -> tensor<8x8xf32>
    %m = "stablehlo.multiply"(%h, %dr) : (tensor<8x8xf32>, tensor<8x8xf32>) -> tensor<8x8xf32>
    %n = "stablehlo.add"(%c, %m) : (tensor<8x8xf32>, tensor<8x8xf32>) -> tensor<8x8xf32>
    %j = "stablehlo.add"(%i, %one) : (tensor<i32>, tensor<i32>) -> tensor<i32>
    "stablehlo.return"(%j, %xs, %v, %ds, %n) : (tensor<i32>, tensor<4x8x8xf32>, tensor<8x8xf32>, tensor<4x8x8xf32>, tensor<8x8xf32>) -> ()
  }) : (tensor<i32>, tensor<4x8x8xf32>, tensor<8x8xf32>, tensor<4x8x8xf32>, tensor<8x8xf32>) -> (tensor<i32>, tensor<4x8x8xf32>, tensor<8x8xf32>, tensor<4x8x8xf32>, tensor<8x8xf32>)
  "func.return"(%f#3, %g#4) : (tensor<4x8x8xf32>, tensor<8x8xf32>) -> ()
}) : () -> ()
