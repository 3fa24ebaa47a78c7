// Found by a random train step (trust.fuzz, JAX, seed 30000): the first kernel after a value was sent to the host was
// the one of the backward part that reads it, and was told to wait by a barrier over what had yet to be fetched.
// RUN: farrier-opt %s --pass-pipeline='builtin.module(farrier-remat{stress=26 small-bytes=1 offload=true})' | farrier-opt | FileCheck %s
// CHECK: func.func public @main
// CHECK: "stablehlo.custom_call"{{.*}}annotate_device_placement{{.*}}pinned_host
// CHECK: "stablehlo.custom_call"{{.*}}annotate_device_placement{{.*}}_xla_buffer_placement = "device"

module @sent_and_fetched {
  func.func public @main(%x: tensor<8x8xf32>, %w: tensor<8x8xf32>) -> tensor<8x8xf32> {
    %a = "stablehlo.dot_general"(%x, %w) <{dot_dimension_numbers = #stablehlo.dot<lhs_contracting_dimensions = [1], rhs_contracting_dimensions = [0]>}> : (tensor<8x8xf32>, tensor<8x8xf32>) -> tensor<8x8xf32>
    %t = "stablehlo.tanh"(%x) : (tensor<8x8xf32>) -> tensor<8x8xf32>
    %u = "stablehlo.multiply"(%t, %x) : (tensor<8x8xf32>, tensor<8x8xf32>) -> tensor<8x8xf32>
    %b = "stablehlo.dot_general"(%a, %u) <{dot_dimension_numbers = #stablehlo.dot<lhs_contracting_dimensions = [1], rhs_contracting_dimensions = [0]>}> : (tensor<8x8xf32>, tensor<8x8xf32>) -> tensor<8x8xf32>
    %c = "stablehlo.dot_general"(%b, %a) <{dot_dimension_numbers = #stablehlo.dot<lhs_contracting_dimensions = [1], rhs_contracting_dimensions = [0]>}> : (tensor<8x8xf32>, tensor<8x8xf32>) -> tensor<8x8xf32>
    "func.return"(%c) : (tensor<8x8xf32>) -> ()
  }
}
