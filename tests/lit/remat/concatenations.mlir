// RUN: farrier-opt %s --split-input-file --pass-pipeline='builtin.module(farrier-remat-loops{save=1})' --mlir-print-op-generic | FileCheck %s

// Each of two slices takes one operand whole: they read it, and nobody reads the concatenation any more.
// CHECK-LABEL: sym_name = "taken_apart"
// CHECK: ^bb0(%[[A:.*]]: tensor<1x4xf32>, %[[B:.*]]: tensor<2x4xf32>):
// CHECK-NEXT: "func.return"(%[[A]], %[[B]])
func.func @taken_apart(%a: tensor<1x4xf32>, %b: tensor<2x4xf32>) -> (tensor<1x4xf32>, tensor<2x4xf32>) {
  %joined = "stablehlo.concatenate"(%a, %b) {dimension = 0 : i64} : (tensor<1x4xf32>, tensor<2x4xf32>) -> tensor<3x4xf32>
  %0 = "stablehlo.slice"(%joined) {start_indices = array<i64: 0, 0>, limit_indices = array<i64: 1, 4>, strides = array<i64: 1, 1>} : (tensor<3x4xf32>) -> tensor<1x4xf32>
  %1 = "stablehlo.slice"(%joined) {start_indices = array<i64: 1, 0>, limit_indices = array<i64: 3, 4>, strides = array<i64: 1, 1>} : (tensor<3x4xf32>) -> tensor<2x4xf32>
  func.return %0, %1 : tensor<1x4xf32>, tensor<2x4xf32>
}

// -----

// Nothing is joined to an empty part, and a slice of everything is no slice.
// CHECK-LABEL: sym_name = "with_nothing"
// CHECK: ^bb0(%[[A:.*]]: tensor<2x4xf32>, %{{.*}}: tensor<0x4xf32>):
// CHECK-NEXT: "func.return"(%[[A]])
func.func @with_nothing(%a: tensor<2x4xf32>, %none: tensor<0x4xf32>) -> tensor<2x4xf32> {
  %joined = "stablehlo.concatenate"(%none, %a) {dimension = 0 : i64} : (tensor<0x4xf32>, tensor<2x4xf32>) -> tensor<2x4xf32>
  %all = "stablehlo.slice"(%joined) {start_indices = array<i64: 0, 0>, limit_indices = array<i64: 2, 4>, strides = array<i64: 1, 1>} : (tensor<2x4xf32>) -> tensor<2x4xf32>
  func.return %all : tensor<2x4xf32>
}

// -----

// Parts of two operands, part of one, and every second row stay as they are.
// CHECK-LABEL: sym_name = "kept"
// CHECK-COUNT-3: "stablehlo.slice"
func.func @kept(%a: tensor<1x4xf32>, %b: tensor<2x4xf32>) -> (tensor<2x4xf32>, tensor<2x2xf32>, tensor<1x4xf32>) {
  %joined = "stablehlo.concatenate"(%a, %b) {dimension = 0 : i64} : (tensor<1x4xf32>, tensor<2x4xf32>) -> tensor<3x4xf32>
  %0 = "stablehlo.slice"(%joined) {start_indices = array<i64: 0, 0>, limit_indices = array<i64: 2, 4>, strides = array<i64: 1, 1>} : (tensor<3x4xf32>) -> tensor<2x4xf32>
  %1 = "stablehlo.slice"(%joined) {start_indices = array<i64: 1, 0>, limit_indices = array<i64: 3, 2>, strides = array<i64: 1, 1>} : (tensor<3x4xf32>) -> tensor<2x2xf32>
  %2 = "stablehlo.slice"(%joined) {start_indices = array<i64: 1, 0>, limit_indices = array<i64: 3, 4>, strides = array<i64: 2, 1>} : (tensor<3x4xf32>) -> tensor<1x4xf32>
  func.return %0, %1, %2 : tensor<2x4xf32>, tensor<2x2xf32>, tensor<1x4xf32>
}
