// Dialects, operations and attributes that farrier does not know pass through untouched.
// RUN: farrier-opt %s --mlir-print-op-generic --allow-unregistered-dialect | FileCheck %s

// CHECK: "new.op"(%arg0) <{mode = #new<x = [1, 2]>}> : (tensor<4xf32>) -> !new.type
func.func @main(%arg0: tensor<4xf32>) -> !new.type {
  %0 = "new.op"(%arg0) <{mode = #new<x = [1, 2]>}> : (tensor<4xf32>) -> !new.type
  return %0 : !new.type
}
