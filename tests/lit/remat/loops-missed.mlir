// RUN: farrier-opt %s --split-input-file --verify-diagnostics --pass-pipeline='builtin.module(farrier-remat-loops{save=0})' --mlir-print-op-generic | FileCheck %s

// Something else reads one of the two stacks: that one stays as it is, and the other is planned alone.

// CHECK-LABEL: sym_name = "other_reader"
// CHECK: %[[F:.*]]:5 = "stablehlo.while"
// CHECK: "stablehlo.slice"(%[[F]]#
"func.func"() <{function_type = (tensor<2x2xf32>, tensor<2x2xf32>) -> tensor<2x2xf32>, sym_name = "other_reader"}> ({
^bb0(%x: tensor<2x2xf32>, %w: tensor<2x2xf32>):
  %zero = "stablehlo.constant"() <{value = dense<0> : tensor<i32>}> : () -> tensor<i32>
  %fzero = "stablehlo.constant"() <{value = dense<0.0> : tensor<f32>}> : () -> tensor<f32>
  %empty = "stablehlo.broadcast_in_dim"(%fzero) <{broadcast_dimensions = array<i64>}> : (tensor<f32>) -> tensor<4x2x2xf32>
  // expected-remark @+1 {{applied:}}
  %f:5 = "stablehlo.while"(%zero, %x, %w, %empty, %empty) ({
  ^bb0(%i: tensor<i32>, %c: tensor<2x2xf32>, %wi: tensor<2x2xf32>, %s0: tensor<4x2x2xf32>, %s1: tensor<4x2x2xf32>):
    %n = "stablehlo.constant"() <{value = dense<4> : tensor<i32>}> : () -> tensor<i32>
    %p = "stablehlo.compare"(%i, %n) <{comparison_direction = #stablehlo<comparison_direction LT>}> : (tensor<i32>, tensor<i32>) -> tensor<i1>
    "stablehlo.return"(%p) : (tensor<i1>) -> ()
  }, {
  ^bb0(%i: tensor<i32>, %c: tensor<2x2xf32>, %wi: tensor<2x2xf32>, %s0: tensor<4x2x2xf32>, %s1: tensor<4x2x2xf32>):
    %z = "stablehlo.constant"() <{value = dense<0> : tensor<i32>}> : () -> tensor<i32>
    %one = "stablehlo.constant"() <{value = dense<1> : tensor<i32>}> : () -> tensor<i32>
    %h = "stablehlo.dot_general"(%c, %wi) <{dot_dimension_numbers = #stablehlo.dot<lhs_contracting_dimensions = [1], rhs_contracting_dimensions = [0]>}> : (tensor<2x2xf32>, tensor<2x2xf32>) -> tensor<2x2xf32>
    %a = "stablehlo.tanh"(%h) : (tensor<2x2xf32>) -> tensor<2x2xf32>
    %g = "stablehlo.dot_general"(%a, %wi) <{dot_dimension_numbers = #stablehlo.dot<lhs_contracting_dimensions = [1], rhs_contracting_dimensions = [0]>}> : (tensor<2x2xf32>, tensor<2x2xf32>) -> tensor<2x2xf32>
    %h1 = "stablehlo.reshape"(%h) : (tensor<2x2xf32>) -> tensor<1x2x2xf32>
    %a1 = "stablehlo.broadcast_in_dim"(%g) <{broadcast_dimensions = array<i64: 1, 2>}> : (tensor<2x2xf32>) -> tensor<1x2x2xf32>
    // expected-remark @+1 {{a residual stack is left alone: something else reads it too}}
    %t0 = "stablehlo.dynamic_update_slice"(%s0, %h1, %i, %z, %z) : (tensor<4x2x2xf32>, tensor<1x2x2xf32>, tensor<i32>, tensor<i32>, tensor<i32>) -> tensor<4x2x2xf32>
    %t1 = "stablehlo.dynamic_update_slice"(%s1, %a1, %i, %z, %z) : (tensor<4x2x2xf32>, tensor<1x2x2xf32>, tensor<i32>, tensor<i32>, tensor<i32>) -> tensor<4x2x2xf32>
    %i1 = "stablehlo.add"(%i, %one) : (tensor<i32>, tensor<i32>) -> tensor<i32>
    "stablehlo.return"(%i1, %g, %wi, %t0, %t1) : (tensor<i32>, tensor<2x2xf32>, tensor<2x2xf32>, tensor<4x2x2xf32>, tensor<4x2x2xf32>) -> ()
  }) : (tensor<i32>, tensor<2x2xf32>, tensor<2x2xf32>, tensor<4x2x2xf32>, tensor<4x2x2xf32>) -> (tensor<i32>, tensor<2x2xf32>, tensor<2x2xf32>, tensor<4x2x2xf32>, tensor<4x2x2xf32>)
  %b:4 = "stablehlo.while"(%zero, %f#1, %f#3, %f#4) ({
  ^bb0(%j: tensor<i32>, %ct: tensor<2x2xf32>, %s0: tensor<4x2x2xf32>, %s1: tensor<4x2x2xf32>):
    %n = "stablehlo.constant"() <{value = dense<4> : tensor<i32>}> : () -> tensor<i32>
    %p = "stablehlo.compare"(%j, %n) <{comparison_direction = #stablehlo<comparison_direction LT>}> : (tensor<i32>, tensor<i32>) -> tensor<i1>
    "stablehlo.return"(%p) : (tensor<i1>) -> ()
  }, {
  ^bb0(%j: tensor<i32>, %ct: tensor<2x2xf32>, %s0: tensor<4x2x2xf32>, %s1: tensor<4x2x2xf32>):
    %z = "stablehlo.constant"() <{value = dense<0> : tensor<i32>}> : () -> tensor<i32>
    %one = "stablehlo.constant"() <{value = dense<1> : tensor<i32>}> : () -> tensor<i32>
    %n = "stablehlo.constant"() <{value = dense<4> : tensor<i32>}> : () -> tensor<i32>
    %k0 = "stablehlo.subtract"(%n, %j) : (tensor<i32>, tensor<i32>) -> tensor<i32>
    %k1 = "stablehlo.subtract"(%k0, %one) : (tensor<i32>, tensor<i32>) -> tensor<i32>
    %neg = "stablehlo.compare"(%k1, %z) <{comparison_direction = #stablehlo<comparison_direction LT>}> : (tensor<i32>, tensor<i32>) -> tensor<i1>
    %wrapped = "stablehlo.add"(%k1, %n) : (tensor<i32>, tensor<i32>) -> tensor<i32>
    %k = "stablehlo.select"(%neg, %wrapped, %k1) : (tensor<i1>, tensor<i32>, tensor<i32>) -> tensor<i32>
    %h1 = "stablehlo.dynamic_slice"(%s0, %k, %z, %z) <{slice_sizes = array<i64: 1, 2, 2>}> : (tensor<4x2x2xf32>, tensor<i32>, tensor<i32>, tensor<i32>) -> tensor<1x2x2xf32>
    %h = "stablehlo.reshape"(%h1) : (tensor<1x2x2xf32>) -> tensor<2x2xf32>
    %a1 = "stablehlo.dynamic_slice"(%s1, %k, %z, %z) <{slice_sizes = array<i64: 1, 2, 2>}> : (tensor<4x2x2xf32>, tensor<i32>, tensor<i32>, tensor<i32>) -> tensor<1x2x2xf32>
    %a = "stablehlo.reshape"(%a1) : (tensor<1x2x2xf32>) -> tensor<2x2xf32>
    %u = "stablehlo.multiply"(%ct, %h) : (tensor<2x2xf32>, tensor<2x2xf32>) -> tensor<2x2xf32>
    %v = "stablehlo.multiply"(%u, %a) : (tensor<2x2xf32>, tensor<2x2xf32>) -> tensor<2x2xf32>
    %j1 = "stablehlo.add"(%j, %one) : (tensor<i32>, tensor<i32>) -> tensor<i32>
    "stablehlo.return"(%j1, %v, %s0, %s1) : (tensor<i32>, tensor<2x2xf32>, tensor<4x2x2xf32>, tensor<4x2x2xf32>) -> ()
  }) : (tensor<i32>, tensor<2x2xf32>, tensor<4x2x2xf32>, tensor<4x2x2xf32>) -> (tensor<i32>, tensor<2x2xf32>, tensor<4x2x2xf32>, tensor<4x2x2xf32>)
  %again = "stablehlo.slice"(%f#3) <{limit_indices = array<i64: 1, 2, 2>, start_indices = array<i64: 0, 0, 0>, strides = array<i64: 1, 1, 1>}> : (tensor<4x2x2xf32>) -> tensor<1x2x2xf32>
  "func.return"(%b#1) : (tensor<2x2xf32>) -> ()
}) : () -> ()
