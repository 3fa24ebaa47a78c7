// RUN: farrier-opt %s --farrier-chain-collectives="bucket-bytes=32 combinable-bytes=1024" --mlir-print-op-generic | FileCheck %s

// Buckets of 32 bytes: the first two reductions (16 bytes each) share one, the third waits for the second, the one
// of 4096 bytes is too large to be joined.
// CHECK-LABEL: sym_name = "three"
"func.func"() <{function_type = (tensor<4xf32>, tensor<4xf32>, tensor<4xf32>, tensor<1024xf32>) -> (tensor<4xf32>, tensor<4xf32>, tensor<4xf32>, tensor<1024xf32>), sym_name = "three"}> ({
^bb0(%0: tensor<4xf32>, %1: tensor<4xf32>, %2: tensor<4xf32>, %3: tensor<1024xf32>):
  // CHECK-NEXT: ^bb0(%[[A:.*]]: tensor<4xf32>, %[[B:.*]]: tensor<4xf32>, %[[C:.*]]: tensor<4xf32>, %[[D:.*]]: tensor<1024xf32>
  // CHECK-NEXT: "stablehlo.all_reduce"(%[[A]])
  // CHECK: %[[SECOND:.*]] = "stablehlo.all_reduce"(%[[B]])
  // CHECK: "stablehlo.all_reduce"(%[[D]])
  // CHECK: %[[W:.*]]:2 = "stablehlo.optimization_barrier"(%[[C]], %[[SECOND]])
  // CHECK-NEXT: "stablehlo.all_reduce"(%[[W]]#0)
  %4 = "stablehlo.all_reduce"(%0) <{replica_groups = dense<[[0, 1]]> : tensor<1x2xi64>}> ({
  ^bb0(%a: tensor<f32>, %b: tensor<f32>):
    %s = "stablehlo.add"(%a, %b) : (tensor<f32>, tensor<f32>) -> tensor<f32>
    "stablehlo.return"(%s) : (tensor<f32>) -> ()
  }) : (tensor<4xf32>) -> tensor<4xf32>
  %5 = "stablehlo.all_reduce"(%1) <{replica_groups = dense<[[0, 1]]> : tensor<1x2xi64>}> ({
  ^bb0(%a: tensor<f32>, %b: tensor<f32>):
    %s = "stablehlo.add"(%a, %b) : (tensor<f32>, tensor<f32>) -> tensor<f32>
    "stablehlo.return"(%s) : (tensor<f32>) -> ()
  }) : (tensor<4xf32>) -> tensor<4xf32>
  %6 = "stablehlo.all_reduce"(%3) <{replica_groups = dense<[[0, 1]]> : tensor<1x2xi64>}> ({
  ^bb0(%a: tensor<f32>, %b: tensor<f32>):
    %s = "stablehlo.add"(%a, %b) : (tensor<f32>, tensor<f32>) -> tensor<f32>
    "stablehlo.return"(%s) : (tensor<f32>) -> ()
  }) : (tensor<1024xf32>) -> tensor<1024xf32>
  %7 = "stablehlo.all_reduce"(%2) <{replica_groups = dense<[[0, 1]]> : tensor<1x2xi64>}> ({
  ^bb0(%a: tensor<f32>, %b: tensor<f32>):
    %s = "stablehlo.add"(%a, %b) : (tensor<f32>, tensor<f32>) -> tensor<f32>
    "stablehlo.return"(%s) : (tensor<f32>) -> ()
  }) : (tensor<4xf32>) -> tensor<4xf32>
  "func.return"(%4, %5, %7, %6) : (tensor<4xf32>, tensor<4xf32>, tensor<4xf32>, tensor<1024xf32>) -> ()
}) : () -> ()
