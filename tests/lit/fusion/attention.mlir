// RUN: farrier-opt %s "--farrier-fusion=rewrites=attention attention-split=mesh|x:4+y:2|x|y" --mlir-print-op-generic | FileCheck %s
// RUN: farrier-opt %s "--farrier-fusion=rewrites=attention attention-split=!positions:x" --mlir-print-op-generic | FileCheck %s --check-prefix=KEPT

// Attention over two mesh axes: one device's part of the batch and of the heads goes through the kernel. The mask of
// keys, which has no name that the kernel knows, is added; it is made for the axes along which it varies.
// CHECK-LABEL: sym_name = "main"
// CHECK: ^bb0([[Q:%.*]]: tensor<4x8x2x16xbf16>, [[K:%.*]]: tensor<4x8x2x16xbf16>, [[V:%.*]]: tensor<4x8x2x16xbf16>, [[SEEN:%.*]]: tensor<4x8xi1>):
// CHECK-DAG: [[FILL:%.*]] = "stablehlo.constant"() <{value = dense<-2.19902326E+12> : tensor<f32>}>
// CHECK: "stablehlo.select"({{.*}}) : (tensor<4x1x1x8xi1>, tensor<4x1x1x8xf32>, tensor<4x1x1x8xf32>)
// CHECK: [[BIAS:%.*]] = "stablehlo.convert"({{.*}}) : (tensor<4x1x8x8xf32>) -> tensor<4x1x8x8xbf16>
// CHECK: "sdy.manual_computation"([[Q]], [[K]], [[V]], [[BIAS]])
// CHECK-SAME: in_shardings = #sdy.sharding_per_value<[<@mesh, [{"x"}, {}, {"y"}, {}]>, <@mesh, [{"x"}, {}, {"y"}, {}]>, <@mesh, [{"x"}, {}, {"y"}, {}]>, <@mesh, [{"x"}, {}, {}, {}]>]>
// CHECK-SAME: manual_axes = #sdy<manual_axes{"x", "y"}>
// CHECK-SAME: out_shardings = #sdy.sharding_per_value<[<@mesh, [{"x"}, {}, {"y"}, {}]>, <@mesh, [{"x"}, {"y"}, {}]>]>
// CHECK: "stablehlo.custom_call"
// CHECK-SAME: call_target_name = "__cudnn$fmhaScaleBiasSoftmax"
// CHECK-SAME: (tensor<1x8x1x16xbf16>, tensor<1x8x1x16xbf16>, tensor<1x8x1x16xbf16>, tensor<1x1x8x8xbf16>) -> (tensor<1x1x8x16xbf16>, tensor<1x1x8xf32>, tensor<0xui8>)
// CHECK: "sdy.return"
// CHECK-NOT: stablehlo.exponential

// Where an axis splits positions, nothing changes.
// KEPT: stablehlo.exponential
// KEPT-NOT: custom_call
"builtin.module"() ({
  "sdy.mesh"() <{mesh = #sdy.mesh<["x"=4, "y"=2]>, sym_name = "mesh"}> : () -> ()
  "func.func"() <{function_type = (tensor<4x8x2x16xbf16>, tensor<4x8x2x16xbf16>, tensor<4x8x2x16xbf16>, tensor<4x8xi1>) -> tensor<4x8x2x16xbf16>, sym_name = "main", sym_visibility = "public"}> ({
  ^bb0(%arg3: tensor<4x8x2x16xbf16>, %arg4: tensor<4x8x2x16xbf16>, %arg5: tensor<4x8x2x16xbf16>, %arg6: tensor<4x8xi1>):
    %3 = "stablehlo.dot_general"(%arg3, %arg4) <{dot_dimension_numbers = #stablehlo.dot<lhs_batching_dimensions = [0, 2], rhs_batching_dimensions = [0, 2], lhs_contracting_dimensions = [3], rhs_contracting_dimensions = [3]>, precision_config = [#stablehlo<precision DEFAULT>, #stablehlo<precision DEFAULT>]}> : (tensor<4x8x2x16xbf16>, tensor<4x8x2x16xbf16>) -> tensor<4x2x8x8xf32>
    %4 = "stablehlo.constant"() <{value = dense<2.500000e-01> : tensor<f32>}> : () -> tensor<f32>
    %5 = "stablehlo.broadcast_in_dim"(%4) <{broadcast_dimensions = array<i64>}> : (tensor<f32>) -> tensor<4x2x8x8xf32>
    %6 = "stablehlo.multiply"(%3, %5) : (tensor<4x2x8x8xf32>, tensor<4x2x8x8xf32>) -> tensor<4x2x8x8xf32>
    %7 = "stablehlo.broadcast_in_dim"(%arg6) <{broadcast_dimensions = array<i64: 0, 3>}> : (tensor<4x8xi1>) -> tensor<4x1x1x8xi1>
    %8 = "stablehlo.constant"() <{value = dense<-1.000000e+30> : tensor<f32>}> : () -> tensor<f32>
    %a = "stablehlo.broadcast_in_dim"(%7) <{broadcast_dimensions = array<i64: 0, 1, 2, 3>}> : (tensor<4x1x1x8xi1>) -> tensor<4x2x8x8xi1>
    %b = "stablehlo.broadcast_in_dim"(%8) <{broadcast_dimensions = array<i64>}> : (tensor<f32>) -> tensor<4x2x8x8xf32>
    %9 = "stablehlo.select"(%a, %6, %b) : (tensor<4x2x8x8xi1>, tensor<4x2x8x8xf32>, tensor<4x2x8x8xf32>) -> tensor<4x2x8x8xf32>
    %10 = "stablehlo.constant"() <{value = dense<0xFF800000> : tensor<f32>}> : () -> tensor<f32>
    %11 = "stablehlo.reduce"(%9, %10) <{dimensions = array<i64: 3>}> ({
    ^bb0(%arg9: tensor<f32>, %arg10: tensor<f32>):
      %25 = "stablehlo.maximum"(%arg9, %arg10) : (tensor<f32>, tensor<f32>) -> tensor<f32>
      "stablehlo.return"(%25) : (tensor<f32>) -> ()
    }) : (tensor<4x2x8x8xf32>, tensor<f32>) -> tensor<4x2x8xf32>
    %12 = "stablehlo.broadcast_in_dim"(%11) <{broadcast_dimensions = array<i64: 0, 1, 2>}> : (tensor<4x2x8xf32>) -> tensor<4x2x8x1xf32>
    %13 = "stablehlo.broadcast_in_dim"(%12) <{broadcast_dimensions = array<i64: 0, 1, 2, 3>}> : (tensor<4x2x8x1xf32>) -> tensor<4x2x8x8xf32>
    %14 = "stablehlo.subtract"(%9, %13) : (tensor<4x2x8x8xf32>, tensor<4x2x8x8xf32>) -> tensor<4x2x8x8xf32>
    %15 = "stablehlo.exponential"(%14) : (tensor<4x2x8x8xf32>) -> tensor<4x2x8x8xf32>
    %16 = "stablehlo.constant"() <{value = dense<0.000000e+00> : tensor<f32>}> : () -> tensor<f32>
    %17 = "stablehlo.reduce"(%15, %16) <{dimensions = array<i64: 3>}> ({
    ^bb0(%arg7: tensor<f32>, %arg8: tensor<f32>):
      %24 = "stablehlo.add"(%arg7, %arg8) : (tensor<f32>, tensor<f32>) -> tensor<f32>
      "stablehlo.return"(%24) : (tensor<f32>) -> ()
    }) : (tensor<4x2x8x8xf32>, tensor<f32>) -> tensor<4x2x8xf32>
    %18 = "stablehlo.broadcast_in_dim"(%17) <{broadcast_dimensions = array<i64: 0, 1, 2>}> : (tensor<4x2x8xf32>) -> tensor<4x2x8x1xf32>
    %19 = "stablehlo.broadcast_in_dim"(%18) <{broadcast_dimensions = array<i64: 0, 1, 2, 3>}> : (tensor<4x2x8x1xf32>) -> tensor<4x2x8x8xf32>
    %20 = "stablehlo.divide"(%15, %19) : (tensor<4x2x8x8xf32>, tensor<4x2x8x8xf32>) -> tensor<4x2x8x8xf32>
    %21 = "stablehlo.convert"(%20) : (tensor<4x2x8x8xf32>) -> tensor<4x2x8x8xbf16>
    %22 = "stablehlo.dot_general"(%arg5, %21) <{dot_dimension_numbers = #stablehlo.dot<lhs_batching_dimensions = [0, 2], rhs_batching_dimensions = [0, 1], lhs_contracting_dimensions = [1], rhs_contracting_dimensions = [3]>, precision_config = [#stablehlo<precision DEFAULT>, #stablehlo<precision DEFAULT>]}> : (tensor<4x8x2x16xbf16>, tensor<4x2x8x8xbf16>) -> tensor<4x2x16x8xbf16>
    %23 = "stablehlo.transpose"(%22) <{permutation = array<i64: 0, 3, 1, 2>}> : (tensor<4x2x16x8xbf16>) -> tensor<4x8x2x16xbf16>
    "func.return"(%23) : (tensor<4x8x2x16xbf16>) -> ()
  }) : () -> ()
}) {mhlo.num_partitions = 8 : i32, mhlo.num_replicas = 1 : i32} : () -> ()
