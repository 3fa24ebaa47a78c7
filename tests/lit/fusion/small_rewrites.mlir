// RUN: farrier-opt %s --farrier-fusion --mlir-print-op-generic | FileCheck %s

// A ragged product is one call of a grouped kernel; nothing is padded or copied.
// CHECK-LABEL: sym_name = "rows"
// CHECK-NEXT: ^bb0([[X:%.*]]: tensor<1024x64xbf16>, [[W:%.*]]: tensor<8x64x96xbf16>, [[S:%.*]]: tensor<8xi32>):
// CHECK-NEXT: "stablehlo.custom_call"([[X]], [[W]], [[S]])
// CHECK-SAME: tt.func public @farrier_grouped_rows_mk_gkn_64x128x64
// CHECK-SAME: call_target_name = "__gpu$xla.gpu.triton"
// CHECK-NEXT: "func.return"
"func.func"() <{function_type = (tensor<1024x64xbf16>, tensor<8x64x96xbf16>, tensor<8xi32>) -> tensor<1024x96xbf16>, sym_name = "rows"}> ({
^bb0(%x: tensor<1024x64xbf16>, %w: tensor<8x64x96xbf16>, %sizes: tensor<8xi32>):
  %0 = "chlo.ragged_dot"(%x, %w, %sizes) <{ragged_dot_dimension_numbers = #chlo.ragged_dot<lhs_contracting_dimensions = [1], rhs_contracting_dimensions = [1], lhs_ragged_dimensions = [0], rhs_group_dimensions = [0]>}> : (tensor<1024x64xbf16>, tensor<8x64x96xbf16>, tensor<8xi32>) -> tensor<1024x96xbf16>
  "func.return"(%0) : (tensor<1024x96xbf16>) -> ()
}) : () -> ()

// A fenced product reads its operands through a barrier; its neighbour does not.
// CHECK-LABEL: sym_name = "fenced"
// CHECK-NEXT: ^bb0([[X:%.*]]: tensor<8x8xf32>, [[Y:%.*]]: tensor<8x8xf32>, [[W:%.*]]: tensor<8x8xf32>):
// CHECK-NEXT: [[B:%.*]]:2 = "stablehlo.optimization_barrier"([[X]], [[W]])
// CHECK-NEXT: "stablehlo.dot_general"([[B]]#0, [[B]]#1)
// CHECK-NEXT: "stablehlo.dot_general"([[Y]], [[W]])
"func.func"() <{function_type = (tensor<8x8xf32>, tensor<8x8xf32>, tensor<8x8xf32>) -> (tensor<8x8xf32>, tensor<8x8xf32>), sym_name = "fenced"}> ({
^bb0(%x: tensor<8x8xf32>, %y: tensor<8x8xf32>, %w: tensor<8x8xf32>):
  %0 = "stablehlo.dot_general"(%x, %w) <{dot_dimension_numbers = #stablehlo.dot<lhs_contracting_dimensions = [1], rhs_contracting_dimensions = [0]>}> {mhlo.frontend_attributes = {farrier.fence = "on"}} : (tensor<8x8xf32>, tensor<8x8xf32>) -> tensor<8x8xf32>
  %1 = "stablehlo.dot_general"(%y, %w) <{dot_dimension_numbers = #stablehlo.dot<lhs_contracting_dimensions = [1], rhs_contracting_dimensions = [0]>}> : (tensor<8x8xf32>, tensor<8x8xf32>) -> tensor<8x8xf32>
  "func.return"(%0, %1) : (tensor<8x8xf32>, tensor<8x8xf32>) -> ()
}) : () -> ()
