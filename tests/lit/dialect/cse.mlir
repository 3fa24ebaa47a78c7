// What MLIR's own CSE may merge and what it may not.
// RUN: farrier-opt %s --cse --mlir-print-op-generic | FileCheck %s

// CHECK-LABEL: sym_name = "pure"
"func.func"() <{function_type = (tensor<4xf32>, tensor<4xf32>) -> (tensor<4xf32>, tensor<4xf32>), sym_name = "pure"}> ({
^bb0(%a: tensor<4xf32>, %b: tensor<4xf32>):
  // Addition may swap its operands; maximum may not (-0 and +0).
  // CHECK-COUNT-1: "stablehlo.add"
  // CHECK-NOT: "stablehlo.add"
  // CHECK-COUNT-2: "stablehlo.maximum"
  %0 = "stablehlo.add"(%a, %b) : (tensor<4xf32>, tensor<4xf32>) -> tensor<4xf32>
  %1 = "stablehlo.add"(%b, %a) : (tensor<4xf32>, tensor<4xf32>) -> tensor<4xf32>
  %2 = "stablehlo.maximum"(%0, %1) : (tensor<4xf32>, tensor<4xf32>) -> tensor<4xf32>
  %3 = "stablehlo.maximum"(%a, %b) : (tensor<4xf32>, tensor<4xf32>) -> tensor<4xf32>
  %4 = "stablehlo.maximum"(%b, %a) : (tensor<4xf32>, tensor<4xf32>) -> tensor<4xf32>
  %5 = "stablehlo.subtract"(%3, %4) : (tensor<4xf32>, tensor<4xf32>) -> tensor<4xf32>
  "func.return"(%2, %5) : (tensor<4xf32>, tensor<4xf32>) -> ()
}) : () -> ()

// CHECK-LABEL: sym_name = "equal_reductions"
"func.func"() <{function_type = (tensor<4xf32>, tensor<f32>) -> (tensor<f32>, tensor<f32>), sym_name = "equal_reductions"}> ({
^bb0(%a: tensor<4xf32>, %z: tensor<f32>):
  // CHECK-COUNT-1: "stablehlo.reduce"
  // CHECK-NOT: "stablehlo.reduce"
  %0 = "stablehlo.reduce"(%a, %z) <{dimensions = array<i64: 0>}> ({
  ^bb0(%x: tensor<f32>, %y: tensor<f32>):
    %s = "stablehlo.add"(%x, %y) : (tensor<f32>, tensor<f32>) -> tensor<f32>
    "stablehlo.return"(%s) : (tensor<f32>) -> ()
  }) : (tensor<4xf32>, tensor<f32>) -> tensor<f32>
  %1 = "stablehlo.reduce"(%a, %z) <{dimensions = array<i64: 0>}> ({
  ^bb0(%x: tensor<f32>, %y: tensor<f32>):
    %s = "stablehlo.add"(%x, %y) : (tensor<f32>, tensor<f32>) -> tensor<f32>
    "stablehlo.return"(%s) : (tensor<f32>) -> ()
  }) : (tensor<4xf32>, tensor<f32>) -> tensor<f32>
  // CHECK: "func.return"
  "func.return"(%0, %1) : (tensor<f32>, tensor<f32>) -> ()
}) : () -> ()

// CHECK-LABEL: sym_name = "kept_apart"
"func.func"() <{function_type = (tensor<4xf32>, tensor<f32>, tensor<1xi64>, !stablehlo.token) -> !stablehlo.token, sym_name = "kept_apart"}> ({
^bb0(%a: tensor<4xf32>, %f: tensor<f32>, %shape: tensor<1xi64>, %t: !stablehlo.token):
  // CHECK-COUNT-2: "stablehlo.rng"
  // CHECK-COUNT-2: "stablehlo.optimization_barrier"
  // CHECK-COUNT-2: "stablehlo.custom_call"{{.*}}has_side_effect = true
  // CHECK-COUNT-1: call_target_name = "quiet"
  // CHECK-COUNT-2: "stablehlo.infeed"
  // CHECK-COUNT-2: "stablehlo.send"
  // CHECK-COUNT-2: "stablehlo.outfeed"
  %0 = "stablehlo.rng"(%f, %f, %shape) <{rng_distribution = #stablehlo<rng_distribution UNIFORM>}> : (tensor<f32>, tensor<f32>, tensor<1xi64>) -> tensor<4xf32>
  %1 = "stablehlo.rng"(%f, %f, %shape) <{rng_distribution = #stablehlo<rng_distribution UNIFORM>}> : (tensor<f32>, tensor<f32>, tensor<1xi64>) -> tensor<4xf32>
  %2 = "stablehlo.optimization_barrier"(%a) : (tensor<4xf32>) -> tensor<4xf32>
  %3 = "stablehlo.optimization_barrier"(%a) : (tensor<4xf32>) -> tensor<4xf32>
  %4 = "stablehlo.custom_call"(%a) <{call_target_name = "loud", has_side_effect = true}> : (tensor<4xf32>) -> tensor<4xf32>
  %5 = "stablehlo.custom_call"(%a) <{call_target_name = "loud", has_side_effect = true}> : (tensor<4xf32>) -> tensor<4xf32>
  %6 = "stablehlo.custom_call"(%a) <{call_target_name = "quiet"}> : (tensor<4xf32>) -> tensor<4xf32>
  %7 = "stablehlo.custom_call"(%a) <{call_target_name = "quiet"}> : (tensor<4xf32>) -> tensor<4xf32>
  %8:2 = "stablehlo.infeed"(%t) : (!stablehlo.token) -> (tensor<4xf32>, !stablehlo.token)
  %9:2 = "stablehlo.infeed"(%t) : (!stablehlo.token) -> (tensor<4xf32>, !stablehlo.token)
  %10 = "stablehlo.send"(%a, %t) <{channel_handle = #stablehlo.channel_handle<handle = 1, type = 1>}> : (tensor<4xf32>, !stablehlo.token) -> !stablehlo.token
  %11 = "stablehlo.send"(%a, %t) <{channel_handle = #stablehlo.channel_handle<handle = 1, type = 1>}> : (tensor<4xf32>, !stablehlo.token) -> !stablehlo.token
  %12 = "stablehlo.outfeed"(%0, %1, %2, %3, %4, %5, %10) : (tensor<4xf32>, tensor<4xf32>, tensor<4xf32>, tensor<4xf32>, tensor<4xf32>, tensor<4xf32>, !stablehlo.token) -> !stablehlo.token
  %13 = "stablehlo.outfeed"(%6, %7, %8#0, %9#0, %11) : (tensor<4xf32>, tensor<4xf32>, tensor<4xf32>, tensor<4xf32>, !stablehlo.token) -> !stablehlo.token
  %14 = "stablehlo.after_all"(%12, %13) : (!stablehlo.token, !stablehlo.token) -> !stablehlo.token
  "func.return"(%14) : (!stablehlo.token) -> ()
}) : () -> ()

// Unused: what only reads or makes goes, what talks to the outside stays.
// CHECK-LABEL: sym_name = "unused"
// CHECK-NOT: "stablehlo.rng"
// CHECK-NOT: "stablehlo.optimization_barrier"
// CHECK-NOT: "stablehlo.all_gather"
// CHECK: "stablehlo.infeed"
"func.func"() <{function_type = (tensor<4xf32>, tensor<f32>, tensor<1xi64>, !stablehlo.token) -> (), sym_name = "unused"}> ({
^bb0(%a: tensor<4xf32>, %f: tensor<f32>, %shape: tensor<1xi64>, %t: !stablehlo.token):
  %0 = "stablehlo.rng"(%f, %f, %shape) <{rng_distribution = #stablehlo<rng_distribution UNIFORM>}> : (tensor<f32>, tensor<f32>, tensor<1xi64>) -> tensor<4xf32>
  %1 = "stablehlo.optimization_barrier"(%a) : (tensor<4xf32>) -> tensor<4xf32>
  %2 = "stablehlo.all_gather"(%a) <{all_gather_dim = 0 : i64, replica_groups = dense<[[0, 1]]> : tensor<1x2xi64>}> : (tensor<4xf32>) -> tensor<8xf32>
  %3:2 = "stablehlo.infeed"(%t) : (!stablehlo.token) -> (tensor<4xf32>, !stablehlo.token)
  "func.return"() : () -> ()
}) : () -> ()

// A collective is merged with its equal and never with one on another channel.
// CHECK-LABEL: sym_name = "collectives"
// CHECK-COUNT-2: "stablehlo.all_gather"
// CHECK-NOT: "stablehlo.all_gather"
"func.func"() <{function_type = (tensor<4xf32>) -> (tensor<8xf32>, tensor<8xf32>, tensor<8xf32>), sym_name = "collectives"}> ({
^bb0(%a: tensor<4xf32>):
  %0 = "stablehlo.all_gather"(%a) <{all_gather_dim = 0 : i64, channel_handle = #stablehlo.channel_handle<handle = 1, type = 1>, replica_groups = dense<[[0, 1]]> : tensor<1x2xi64>}> : (tensor<4xf32>) -> tensor<8xf32>
  %1 = "stablehlo.all_gather"(%a) <{all_gather_dim = 0 : i64, channel_handle = #stablehlo.channel_handle<handle = 1, type = 1>, replica_groups = dense<[[0, 1]]> : tensor<1x2xi64>}> : (tensor<4xf32>) -> tensor<8xf32>
  %2 = "stablehlo.all_gather"(%a) <{all_gather_dim = 0 : i64, channel_handle = #stablehlo.channel_handle<handle = 2, type = 1>, replica_groups = dense<[[0, 1]]> : tensor<1x2xi64>}> : (tensor<4xf32>) -> tensor<8xf32>
  "func.return"(%0, %1, %2) : (tensor<8xf32>, tensor<8xf32>, tensor<8xf32>) -> ()
}) : () -> ()
