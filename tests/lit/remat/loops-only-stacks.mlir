// RUN: farrier-opt %s --pass-pipeline='builtin.module(farrier-remat-loops{save=0})' --mlir-print-op-generic | FileCheck %s

// Nothing but the backward loop reads the forward one, and of it only the stack: once the backward loop is replaced
// the old forward loop is dead. It was erased twice.

// CHECK-LABEL: sym_name = "only_stacks"
// CHECK-COUNT-2: "stablehlo.while"
// CHECK-NOT: "stablehlo.while"
"func.func"() <{function_type = (tensor<2x2xf32>, tensor<2x2xf32>) -> tensor<2x2xf32>, sym_name = "only_stacks"}> ({
^bb0(%x: tensor<2x2xf32>, %w: tensor<2x2xf32>):
  %zero = "stablehlo.constant"() <{value = dense<0> : tensor<i32>}> : () -> tensor<i32>
  %fzero = "stablehlo.constant"() <{value = dense<0.0> : tensor<f32>}> : () -> tensor<f32>
  %empty = "stablehlo.broadcast_in_dim"(%fzero) <{broadcast_dimensions = array<i64>}> : (tensor<f32>) -> tensor<4x2x2xf32>
  %f:4 = "stablehlo.while"(%zero, %x, %w, %empty) ({
  ^bb0(%i: tensor<i32>, %c: tensor<2x2xf32>, %wi: tensor<2x2xf32>, %s: tensor<4x2x2xf32>):
    %n = "stablehlo.constant"() <{value = dense<4> : tensor<i32>}> : () -> tensor<i32>
    %p = "stablehlo.compare"(%i, %n) <{comparison_direction = #stablehlo<comparison_direction LT>}> : (tensor<i32>, tensor<i32>) -> tensor<i1>
    "stablehlo.return"(%p) : (tensor<i1>) -> ()
  }, {
  ^bb0(%i: tensor<i32>, %c: tensor<2x2xf32>, %wi: tensor<2x2xf32>, %s: tensor<4x2x2xf32>):
    %z = "stablehlo.constant"() <{value = dense<0> : tensor<i32>}> : () -> tensor<i32>
    %one = "stablehlo.constant"() <{value = dense<1> : tensor<i32>}> : () -> tensor<i32>
    %h = "stablehlo.multiply"(%wi, %wi) : (tensor<2x2xf32>, tensor<2x2xf32>) -> tensor<2x2xf32>
    %h1 = "stablehlo.reshape"(%h) : (tensor<2x2xf32>) -> tensor<1x2x2xf32>
    %t = "stablehlo.dynamic_update_slice"(%s, %h1, %i, %z, %z) : (tensor<4x2x2xf32>, tensor<1x2x2xf32>, tensor<i32>, tensor<i32>, tensor<i32>) -> tensor<4x2x2xf32>
    %i1 = "stablehlo.add"(%i, %one) : (tensor<i32>, tensor<i32>) -> tensor<i32>
    "stablehlo.return"(%i1, %c, %wi, %t) : (tensor<i32>, tensor<2x2xf32>, tensor<2x2xf32>, tensor<4x2x2xf32>) -> ()
  }) : (tensor<i32>, tensor<2x2xf32>, tensor<2x2xf32>, tensor<4x2x2xf32>) -> (tensor<i32>, tensor<2x2xf32>, tensor<2x2xf32>, tensor<4x2x2xf32>)
  %b:3 = "stablehlo.while"(%zero, %x, %f#3) ({
  ^bb0(%j: tensor<i32>, %ct: tensor<2x2xf32>, %s: tensor<4x2x2xf32>):
    %n = "stablehlo.constant"() <{value = dense<4> : tensor<i32>}> : () -> tensor<i32>
    %p = "stablehlo.compare"(%j, %n) <{comparison_direction = #stablehlo<comparison_direction LT>}> : (tensor<i32>, tensor<i32>) -> tensor<i1>
    "stablehlo.return"(%p) : (tensor<i1>) -> ()
  }, {
  ^bb0(%j: tensor<i32>, %ct: tensor<2x2xf32>, %s: tensor<4x2x2xf32>):
    %z = "stablehlo.constant"() <{value = dense<0> : tensor<i32>}> : () -> tensor<i32>
    %one = "stablehlo.constant"() <{value = dense<1> : tensor<i32>}> : () -> tensor<i32>
    %last = "stablehlo.constant"() <{value = dense<3> : tensor<i32>}> : () -> tensor<i32>
    %k = "stablehlo.subtract"(%last, %j) : (tensor<i32>, tensor<i32>) -> tensor<i32>
    %h1 = "stablehlo.dynamic_slice"(%s, %k, %z, %z) <{slice_sizes = array<i64: 1, 2, 2>}> : (tensor<4x2x2xf32>, tensor<i32>, tensor<i32>, tensor<i32>) -> tensor<1x2x2xf32>
    %h = "stablehlo.reshape"(%h1) : (tensor<1x2x2xf32>) -> tensor<2x2xf32>
    %u = "stablehlo.multiply"(%ct, %h) : (tensor<2x2xf32>, tensor<2x2xf32>) -> tensor<2x2xf32>
    %j1 = "stablehlo.add"(%j, %one) : (tensor<i32>, tensor<i32>) -> tensor<i32>
    "stablehlo.return"(%j1, %u, %s) : (tensor<i32>, tensor<2x2xf32>, tensor<4x2x2xf32>) -> ()
  }) : (tensor<i32>, tensor<2x2xf32>, tensor<4x2x2xf32>) -> (tensor<i32>, tensor<2x2xf32>, tensor<4x2x2xf32>)
  "func.return"(%b#1) : (tensor<2x2xf32>) -> ()
}) : () -> ()
