// RUN: farrier-opt %s --canonicalize --mlir-print-op-generic | FileCheck %s

// CHECK-LABEL: sym_name = "identities"
"func.func"() <{function_type = (tensor<2x3xf32>) -> tensor<2x3xf32>, sym_name = "identities"}> ({
^bb0(%0: tensor<2x3xf32>):
  // CHECK-NEXT: ^bb0(%[[ARG:.*]]: tensor<2x3xf32>
  // CHECK-NEXT: "func.return"(%[[ARG]])
  %1 = "stablehlo.transpose"(%0) <{permutation = array<i64: 0, 1>}> : (tensor<2x3xf32>) -> tensor<2x3xf32>
  %2 = "stablehlo.reshape"(%1) : (tensor<2x3xf32>) -> tensor<2x3xf32>
  %3 = "stablehlo.broadcast_in_dim"(%2) <{broadcast_dimensions = array<i64: 0, 1>}> : (tensor<2x3xf32>) -> tensor<2x3xf32>
  %4 = "stablehlo.convert"(%3) : (tensor<2x3xf32>) -> tensor<2x3xf32>
  %5 = "stablehlo.slice"(%4) <{start_indices = array<i64: 0, 0>, limit_indices = array<i64: 2, 3>, strides = array<i64: 1, 1>}> : (tensor<2x3xf32>) -> tensor<2x3xf32>
  %6 = "stablehlo.concatenate"(%5) <{dimension = 1 : i64}> : (tensor<2x3xf32>) -> tensor<2x3xf32>
  %7 = "stablehlo.reverse"(%6) <{dimensions = array<i64>}> : (tensor<2x3xf32>) -> tensor<2x3xf32>
  "func.return"(%7) : (tensor<2x3xf32>) -> ()
}) : () -> ()

// CHECK-LABEL: sym_name = "compositions"
"func.func"() <{function_type = (tensor<2x3x4xf32>) -> (tensor<3x2x4xf32>, tensor<24xf32>), sym_name = "compositions"}> ({
^bb0(%0: tensor<2x3x4xf32>):
  // CHECK: %[[T:.*]] = "stablehlo.transpose"(%[[ARG:.*]]) <{permutation = array<i64: 1, 0, 2>}>
  // CHECK-NEXT: %[[R:.*]] = "stablehlo.reshape"(%[[ARG]]) : (tensor<2x3x4xf32>) -> tensor<24xf32>
  // CHECK-NEXT: "func.return"(%[[T]], %[[R]])
  %1 = "stablehlo.transpose"(%0) <{permutation = array<i64: 2, 0, 1>}> : (tensor<2x3x4xf32>) -> tensor<4x2x3xf32>
  %2 = "stablehlo.transpose"(%1) <{permutation = array<i64: 2, 1, 0>}> : (tensor<4x2x3xf32>) -> tensor<3x2x4xf32>
  %3 = "stablehlo.reshape"(%0) : (tensor<2x3x4xf32>) -> tensor<6x4xf32>
  %4 = "stablehlo.reshape"(%3) : (tensor<6x4xf32>) -> tensor<24xf32>
  "func.return"(%2, %4) : (tensor<3x2x4xf32>, tensor<24xf32>) -> ()
}) : () -> ()

// What carries attributes stays, and so do constants: merging two would lose one's sharding.
// CHECK-LABEL: sym_name = "attributes_stay"
"func.func"() <{function_type = (tensor<2xf32>) -> (tensor<2xf32>, tensor<2xf32>, tensor<2xf32>), sym_name = "attributes_stay"}> ({
^bb0(%0: tensor<2xf32>):
  // CHECK: "stablehlo.reshape"{{.*}}inlineable
  // CHECK: "stablehlo.constant"{{.*}}sdy.sharding
  // CHECK: "stablehlo.constant"
  %1 = "stablehlo.reshape"(%0) {mhlo.frontend_attributes = {inlineable = "false"}} : (tensor<2xf32>) -> tensor<2xf32>
  %2 = "stablehlo.constant"() <{value = dense<1.0> : tensor<2xf32>}> {sdy.sharding = #sdy.sharding_per_value<[<@mesh, [{"x"}]>]>} : () -> tensor<2xf32>
  %3 = "stablehlo.constant"() <{value = dense<1.0> : tensor<2xf32>}> : () -> tensor<2xf32>
  "func.return"(%1, %2, %3) : (tensor<2xf32>, tensor<2xf32>, tensor<2xf32>) -> ()
}) : () -> ()
