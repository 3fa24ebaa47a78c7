// RUN: farrier-opt %s --farrier-merge-collectives --mlir-print-op-generic | FileCheck %s
// RUN: farrier-opt %s --farrier-merge-collectives=regroup=false --mlir-print-op-generic | FileCheck %s --check-prefix=ORDER

// Two gathers of one value differ in their channel only.
// CHECK-LABEL: sym_name = "repeated"
"func.func"() <{function_type = (tensor<4xf32>) -> (tensor<8xf32>, tensor<8xf32>), sym_name = "repeated"}> ({
^bb0(%0: tensor<4xf32>):
  // CHECK: %[[G:.*]] = "stablehlo.all_gather"
  // CHECK-NEXT: "func.return"(%[[G]], %[[G]])
  %1 = "stablehlo.all_gather"(%0) <{all_gather_dim = 0 : i64, channel_handle = #stablehlo.channel_handle<handle = 1, type = 1>, replica_groups = dense<[[0, 1]]> : tensor<1x2xi64>, use_global_device_ids}> : (tensor<4xf32>) -> tensor<8xf32>
  %2 = "stablehlo.all_gather"(%0) <{all_gather_dim = 0 : i64, channel_handle = #stablehlo.channel_handle<handle = 2, type = 1>, replica_groups = dense<[[0, 1]]> : tensor<1x2xi64>, use_global_device_ids}> : (tensor<4xf32>) -> tensor<8xf32>
  "func.return"(%1, %2) : (tensor<8xf32>, tensor<8xf32>) -> ()
}) : () -> ()

// Other groups, and a value behind a barrier.
// CHECK-LABEL: sym_name = "not_repeated"
"func.func"() <{function_type = (tensor<4xf32>) -> (tensor<8xf32>, tensor<8xf32>, tensor<8xf32>), sym_name = "not_repeated"}> ({
^bb0(%0: tensor<4xf32>):
  // CHECK-COUNT-3: "stablehlo.all_gather"
  %1 = "stablehlo.all_gather"(%0) <{all_gather_dim = 0 : i64, replica_groups = dense<[[0, 1]]> : tensor<1x2xi64>}> : (tensor<4xf32>) -> tensor<8xf32>
  %2 = "stablehlo.all_gather"(%0) <{all_gather_dim = 0 : i64, replica_groups = dense<[[1, 0]]> : tensor<1x2xi64>}> : (tensor<4xf32>) -> tensor<8xf32>
  %3 = "stablehlo.optimization_barrier"(%0) : (tensor<4xf32>) -> tensor<4xf32>
  %4 = "stablehlo.all_gather"(%3) <{all_gather_dim = 0 : i64, replica_groups = dense<[[0, 1]]> : tensor<1x2xi64>}> : (tensor<4xf32>) -> tensor<8xf32>
  "func.return"(%1, %2, %4) : (tensor<8xf32>, tensor<8xf32>, tensor<8xf32>) -> ()
}) : () -> ()

// The largest of the largest; a sum of a sum is another value.
// CHECK-LABEL: sym_name = "reduced_twice"
"func.func"() <{function_type = (tensor<4xf32>) -> (tensor<4xf32>, tensor<4xf32>), sym_name = "reduced_twice"}> ({
^bb0(%0: tensor<4xf32>):
  // CHECK: %[[M:.*]] = "stablehlo.all_reduce"
  // CHECK: "stablehlo.maximum"
  // CHECK-NOT: "stablehlo.maximum"
  // CHECK: "stablehlo.all_reduce"
  // CHECK: %[[S:.*]] = "stablehlo.all_reduce"
  // CHECK: "func.return"(%[[M]], %[[S]])
  %1 = "stablehlo.all_reduce"(%0) <{replica_groups = dense<[[0, 1]]> : tensor<1x2xi64>}> ({
  ^bb0(%a: tensor<f32>, %b: tensor<f32>):
    %s = "stablehlo.maximum"(%a, %b) : (tensor<f32>, tensor<f32>) -> tensor<f32>
    "stablehlo.return"(%s) : (tensor<f32>) -> ()
  }) : (tensor<4xf32>) -> tensor<4xf32>
  %2 = "stablehlo.all_reduce"(%1) <{replica_groups = dense<[[0, 1]]> : tensor<1x2xi64>}> ({
  ^bb0(%a: tensor<f32>, %b: tensor<f32>):
    %s = "stablehlo.maximum"(%a, %b) : (tensor<f32>, tensor<f32>) -> tensor<f32>
    "stablehlo.return"(%s) : (tensor<f32>) -> ()
  }) : (tensor<4xf32>) -> tensor<4xf32>
  %3 = "stablehlo.all_reduce"(%0) <{replica_groups = dense<[[0, 1]]> : tensor<1x2xi64>}> ({
  ^bb0(%a: tensor<f32>, %b: tensor<f32>):
    %s = "stablehlo.add"(%a, %b) : (tensor<f32>, tensor<f32>) -> tensor<f32>
    "stablehlo.return"(%s) : (tensor<f32>) -> ()
  }) : (tensor<4xf32>) -> tensor<4xf32>
  %4 = "stablehlo.all_reduce"(%3) <{replica_groups = dense<[[0, 1]]> : tensor<1x2xi64>}> ({
  ^bb0(%a: tensor<f32>, %b: tensor<f32>):
    %s = "stablehlo.add"(%a, %b) : (tensor<f32>, tensor<f32>) -> tensor<f32>
    "stablehlo.return"(%s) : (tensor<f32>) -> ()
  }) : (tensor<4xf32>) -> tensor<4xf32>
  "func.return"(%2, %4) : (tensor<4xf32>, tensor<4xf32>) -> ()
}) : () -> ()

// CHECK-LABEL: sym_name = "scattered_and_gathered"
// ORDER-LABEL: sym_name = "scattered_and_gathered"
"func.func"() <{function_type = (tensor<8xf32>) -> tensor<8xf32>, sym_name = "scattered_and_gathered"}> ({
^bb0(%0: tensor<8xf32>):
  // CHECK: %[[R:.*]] = "stablehlo.all_reduce"(%{{.*}}) <{replica_groups = dense<{{.*}}0, 1{{.*}}>
  // CHECK-NOT: "stablehlo.all_gather"
  // CHECK: "func.return"(%[[R]])
  // ORDER: "stablehlo.reduce_scatter"
  // ORDER: "stablehlo.all_gather"
  %1 = "stablehlo.reduce_scatter"(%0) <{replica_groups = dense<[[0, 1]]> : tensor<1x2xi64>, scatter_dimension = 0 : i64}> ({
  ^bb0(%a: tensor<f32>, %b: tensor<f32>):
    %s = "stablehlo.add"(%a, %b) : (tensor<f32>, tensor<f32>) -> tensor<f32>
    "stablehlo.return"(%s) : (tensor<f32>) -> ()
  }) : (tensor<8xf32>) -> tensor<4xf32>
  %2 = "stablehlo.all_gather"(%1) <{all_gather_dim = 0 : i64, replica_groups = dense<[[0, 1]]> : tensor<1x2xi64>}> : (tensor<4xf32>) -> tensor<8xf32>
  "func.return"(%2) : (tensor<8xf32>) -> ()
}) : () -> ()

// Device 0 hears of device 1, which hears of nobody: zeros, as before.
// CHECK-LABEL: sym_name = "permuted_twice"
"func.func"() <{function_type = (tensor<8xf32>) -> tensor<8xf32>, sym_name = "permuted_twice"}> ({
^bb0(%0: tensor<8xf32>):
  // CHECK: %[[P:.*]] = "stablehlo.collective_permute"(%{{.*}}) <{{.*}}source_target_pairs = dense<{{\[\[}}0, 3]]> : tensor<1x2xi64>
  // CHECK-NEXT: "func.return"(%[[P]])
  %1 = "stablehlo.collective_permute"(%0) <{source_target_pairs = dense<[[0, 2], [2, 3]]> : tensor<2x2xi64>}> : (tensor<8xf32>) -> tensor<8xf32>
  %2 = "stablehlo.collective_permute"(%1) <{source_target_pairs = dense<[[2, 3], [1, 0]]> : tensor<2x2xi64>}> : (tensor<8xf32>) -> tensor<8xf32>
  "func.return"(%2) : (tensor<8xf32>) -> ()
}) : () -> ()
