// RUN: farrier-opt %s --farrier-simplify-collectives --mlir-print-op-generic | FileCheck %s

// CHECK-LABEL: sym_name = "gather_narrow"
"func.func"() <{function_type = (tensor<4x8xf32>) -> tensor<32x8xbf16>, sym_name = "gather_narrow"}> ({
^bb0(%0: tensor<4x8xf32>):
  // CHECK: %[[N:.*]] = "stablehlo.convert"(%{{.*}}) : (tensor<4x8xf32>) -> tensor<4x8xbf16>
  // CHECK-NEXT: %[[G:.*]] = "stablehlo.all_gather"(%[[N]]){{.*}}: (tensor<4x8xbf16>) -> tensor<32x8xbf16>
  // CHECK-NEXT: "func.return"(%[[G]])
  %1 = "stablehlo.all_gather"(%0) <{all_gather_dim = 0 : i64, replica_groups = dense<[[0, 1, 2, 3, 4, 5, 6, 7]]> : tensor<1x8xi64>}> : (tensor<4x8xf32>) -> tensor<32x8xf32>
  %2 = "stablehlo.convert"(%1) : (tensor<32x8xf32>) -> tensor<32x8xbf16>
  "func.return"(%2) : (tensor<32x8xbf16>) -> ()
}) : () -> ()

// Another use in the wide type: nothing to gain. A conversion to a wider type would send more.
// CHECK-LABEL: sym_name = "wide_use"
"func.func"() <{function_type = (tensor<4xf32>) -> (tensor<8xbf16>, tensor<8xf32>, tensor<8xf64>), sym_name = "wide_use"}> ({
^bb0(%0: tensor<4xf32>):
  // CHECK: "stablehlo.all_gather"{{.*}}: (tensor<4xf32>) -> tensor<8xf32>
  %1 = "stablehlo.all_gather"(%0) <{all_gather_dim = 0 : i64, replica_groups = dense<[[0, 1]]> : tensor<1x2xi64>}> : (tensor<4xf32>) -> tensor<8xf32>
  %2 = "stablehlo.convert"(%1) : (tensor<8xf32>) -> tensor<8xbf16>
  // CHECK: "stablehlo.all_gather"{{.*}}: (tensor<4xf32>) -> tensor<8xf32>
  %3 = "stablehlo.all_gather"(%0) <{all_gather_dim = 0 : i64, replica_groups = dense<[[0, 1]]> : tensor<1x2xi64>}> : (tensor<4xf32>) -> tensor<8xf32>
  %4 = "stablehlo.convert"(%3) : (tensor<8xf32>) -> tensor<8xf64>
  "func.return"(%2, %1, %4) : (tensor<8xbf16>, tensor<8xf32>, tensor<8xf64>) -> ()
}) : () -> ()

// A reduction rounds: the narrow type would change its result.
// CHECK-LABEL: sym_name = "reduction_stays_wide"
"func.func"() <{function_type = (tensor<4xf32>) -> tensor<4xbf16>, sym_name = "reduction_stays_wide"}> ({
^bb0(%0: tensor<4xf32>):
  // CHECK: "stablehlo.all_reduce"
  // CHECK: (tensor<4xf32>) -> tensor<4xf32>
  %1 = "stablehlo.all_reduce"(%0) <{replica_groups = dense<[[0, 1]]> : tensor<1x2xi64>}> ({
  ^bb0(%a: tensor<f32>, %b: tensor<f32>):
    %s = "stablehlo.add"(%a, %b) : (tensor<f32>, tensor<f32>) -> tensor<f32>
    "stablehlo.return"(%s) : (tensor<f32>) -> ()
  }) : (tensor<4xf32>) -> tensor<4xf32>
  %2 = "stablehlo.convert"(%1) : (tensor<4xf32>) -> tensor<4xbf16>
  "func.return"(%2) : (tensor<4xbf16>) -> ()
}) : () -> ()

// CHECK-LABEL: sym_name = "alone"
"func.func"() <{function_type = (tensor<4xf32>) -> tensor<4xf32>, sym_name = "alone"}> ({
^bb0(%0: tensor<4xf32>):
  // CHECK-NEXT: ^bb0(%[[ARG:.*]]: tensor<4xf32>
  // CHECK-NEXT: "func.return"(%[[ARG]])
  %1 = "stablehlo.all_gather"(%0) <{all_gather_dim = 0 : i64, replica_groups = dense<[[0], [1]]> : tensor<2x1xi64>}> : (tensor<4xf32>) -> tensor<4xf32>
  "func.return"(%1) : (tensor<4xf32>) -> ()
}) : () -> ()

// CHECK-LABEL: sym_name = "marked"
"func.func"() <{function_type = (tensor<4xf32>) -> tensor<4xf32>, sym_name = "marked"}> ({
^bb0(%0: tensor<4xf32>):
  // CHECK: "stablehlo.all_gather"
  %1 = "stablehlo.all_gather"(%0) <{all_gather_dim = 0 : i64, replica_groups = dense<[[0], [1]]> : tensor<2x1xi64>}> {mhlo.frontend_attributes = {key = "value"}} : (tensor<4xf32>) -> tensor<4xf32>
  "func.return"(%1) : (tensor<4xf32>) -> ()
}) : () -> ()
