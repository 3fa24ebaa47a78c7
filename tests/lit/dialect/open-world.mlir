// What this build does not know survives: attributes, operations, types, dialects.
// RUN: farrier-opt %s --mlir-print-op-generic | FileCheck %s
// RUN: farrier-opt %s --mlir-print-op-generic --cse | FileCheck %s --check-prefix=CSE

// CHECK-LABEL: sym_name = "unknown_attribute"
// CSE-LABEL: sym_name = "unknown_attribute"
"func.func"() <{function_type = (tensor<2xf32>) -> tensor<2xf32>, sym_name = "unknown_attribute"}> ({
^bb0(%arg0: tensor<2xf32>):
  // CHECK: "stablehlo.add"({{.*}}) <{novelty = #stablehlo.novel<[1, 2], "x">}>
  // CHECK-SAME: {mhlo.frontend_attributes = {k = "v"}}
  // CSE: novelty = #stablehlo.novel<[1, 2], "x">
  %0 = "stablehlo.add"(%arg0, %arg0) <{novelty = #stablehlo.novel<[1, 2], "x">}> {mhlo.frontend_attributes = {k = "v"}} : (tensor<2xf32>, tensor<2xf32>) -> tensor<2xf32>
  // Equal but for the unknown attribute: CSE keeps both; the fourth equals the third and goes.
  // CHECK: "stablehlo.sine"({{.*}}) <{mode = 1 : i32}>
  // CSE: "stablehlo.sine"({{.*}}) <{mode = 1 : i32}>
  %1 = "stablehlo.sine"(%0) <{mode = 1 : i32}> : (tensor<2xf32>) -> tensor<2xf32>
  // CHECK: "stablehlo.sine"({{.*}}) <{mode = 2 : i32}>
  // CSE: "stablehlo.sine"({{.*}}) <{mode = 2 : i32}>
  %2 = "stablehlo.sine"(%0) <{mode = 2 : i32}> : (tensor<2xf32>) -> tensor<2xf32>
  // CHECK: "stablehlo.sine"({{.*}}) <{mode = 2 : i32}>
  // CSE-NOT: stablehlo.sine
  %3 = "stablehlo.sine"(%0) <{mode = 2 : i32}> : (tensor<2xf32>) -> tensor<2xf32>
  // A key that happens to be the hidden property's own name is one more unknown key.
  // CHECK: "stablehlo.cosine"({{.*}}) <{open_attrs = {a = 1 : i64}, result_accuracy = #stablehlo.result_accuracy<mode = #stablehlo.result_accuracy_mode<HIGHEST>>}>
  // CSE: open_attrs = {a = 1 : i64}
  %4 = "stablehlo.cosine"(%0) <{open_attrs = {a = 1}, result_accuracy = #stablehlo.result_accuracy<mode = #stablehlo.result_accuracy_mode<HIGHEST>>}> : (tensor<2xf32>) -> tensor<2xf32>
  %5 = "stablehlo.add"(%1, %2) : (tensor<2xf32>, tensor<2xf32>) -> tensor<2xf32>
  %6 = "stablehlo.add"(%5, %3) : (tensor<2xf32>, tensor<2xf32>) -> tensor<2xf32>
  %7 = "stablehlo.add"(%6, %4) : (tensor<2xf32>, tensor<2xf32>) -> tensor<2xf32>
  "func.return"(%7) : (tensor<2xf32>) -> ()
}) : () -> ()

// CHECK-LABEL: sym_name = "unknown_operations"
"func.func"() <{function_type = (tensor<2xf32>) -> tensor<2x!quant.uniform<i8:f32, 1.000000e-01>>, sym_name = "unknown_operations"}> ({
^bb0(%arg0: tensor<2xf32>):
  // CHECK: "stablehlo.invented"({{.*}}) <{x = 1 : i64}> ({
  %0 = "stablehlo.invented"(%arg0) <{x = 1 : i64}> ({
    "stablehlo.return"() : () -> ()
  }) : (tensor<2xf32>) -> !stablehlo.thing<[3], "y">
  // CHECK: "chlo.erf"({{.*}}) : (tensor<2xf32>) -> tensor<2xf32>
  %1 = "chlo.erf"(%arg0) : (tensor<2xf32>) -> tensor<2xf32>
  // CHECK: "stablehlo.uniform_quantize"({{.*}}) : (tensor<2xf32>) -> tensor<2x!quant.uniform<i8:f32, 1.000000e-01>>
  %2 = "stablehlo.uniform_quantize"(%1) : (tensor<2xf32>) -> tensor<2x!quant.uniform<i8:f32, 1.000000e-01>>
  // CHECK: "nobody.knows"({{.*}}) {how = #nobody<"such things", 1>} : (!stablehlo.thing<[3], "y">) -> ()
  "nobody.knows"(%0) {how = #nobody<"such things", 1>} : (!stablehlo.thing<[3], "y">) -> ()
  "func.return"(%2) : (tensor<2x!quant.uniform<i8:f32, 1.000000e-01>>) -> ()
}) : () -> ()

// A call inside a region of a dialect that is only carried along.
"func.func"() <{function_type = (tensor<2xf32>) -> tensor<2xf32>, sym_name = "callee", sym_visibility = "private"}> ({
^bb0(%arg0: tensor<2xf32>):
  "func.return"(%arg0) : (tensor<2xf32>) -> ()
}) : () -> ()
// CHECK-LABEL: sym_name = "call_in_manual_computation"
"func.func"() <{function_type = (tensor<2xf32>) -> tensor<2xf32>, sym_name = "call_in_manual_computation"}> ({
^bb0(%arg0: tensor<2xf32>):
  // CHECK: "sdy.manual_computation"({{.*}}) <{in_shardings = #sdy.sharding_per_value<[<@mesh, [{"x"}]>]>
  %0 = "sdy.manual_computation"(%arg0) <{in_shardings = #sdy.sharding_per_value<[<@mesh, [{"x"}]>]>, manual_axes = #sdy<manual_axes{"x"}>}> ({
  ^bb0(%arg1: tensor<2xf32>):
    // CHECK: "func.call"({{.*}}) <{callee = @callee}>
    %1 = "func.call"(%arg1) <{callee = @callee}> : (tensor<2xf32>) -> tensor<2xf32>
    "sdy.return"(%1) : (tensor<2xf32>) -> ()
  }) : (tensor<2xf32>) -> tensor<2xf32>
  "func.return"(%0) : (tensor<2xf32>) -> ()
}) : () -> ()
