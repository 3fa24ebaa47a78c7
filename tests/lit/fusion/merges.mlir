// RUN: farrier-opt %s --split-input-file --farrier-fusion="rewrites=fence fence-bytes=32768" --mlir-print-op-generic | FileCheck %s
// RUN: farrier-opt %s --split-input-file --farrier-fusion="rewrites=fence fence-bytes=32769" --mlir-print-op-generic | FileCheck %s --check-prefix=MORE

// Merged by XLA, both results would be there together: 32 KiB more. What they share is read through barriers; the rows
// are not, so that products of the same rows can still be merged.
// CHECK-LABEL: sym_name = "one_after_another"
// CHECK-NEXT: ^bb0([[X:%.*]]: tensor<64x32xf32>, [[Y:%.*]]: tensor<64x32xf32>, [[W:%.*]]: tensor<32x128xf32>):
// CHECK: [[A:%.*]]:2 = "stablehlo.optimization_barrier"([[X]], [[W]])
// CHECK-NEXT: "stablehlo.dot_general"([[X]], [[A]]#1)
// CHECK: [[B:%.*]]:2 = "stablehlo.optimization_barrier"([[Y]], [[W]])
// CHECK-NEXT: "stablehlo.dot_general"([[Y]], [[B]]#1)
// MORE-LABEL: sym_name = "one_after_another"
// MORE-NOT: optimization_barrier
"func.func"() <{function_type = (tensor<64x32xf32>, tensor<64x32xf32>, tensor<32x128xf32>) -> (tensor<f32>, tensor<f32>), sym_name = "one_after_another"}> ({
^bb0(%x: tensor<64x32xf32>, %y: tensor<64x32xf32>, %w: tensor<32x128xf32>):
  %zero = "stablehlo.constant"() <{value = dense<0.0> : tensor<f32>}> : () -> tensor<f32>
  %a = "stablehlo.dot_general"(%x, %w) <{dot_dimension_numbers = #stablehlo.dot<lhs_contracting_dimensions = [1], rhs_contracting_dimensions = [0]>}> : (tensor<64x32xf32>, tensor<32x128xf32>) -> tensor<64x128xf32>
  %r = "stablehlo.reduce"(%a, %zero) <{dimensions = array<i64: 0, 1>}> ({
  ^bb0(%p: tensor<f32>, %q: tensor<f32>):
    %m = "stablehlo.maximum"(%p, %q) : (tensor<f32>, tensor<f32>) -> tensor<f32>
    "stablehlo.return"(%m) : (tensor<f32>) -> ()
  }) : (tensor<64x128xf32>, tensor<f32>) -> tensor<f32>
  %b = "stablehlo.dot_general"(%y, %w) <{dot_dimension_numbers = #stablehlo.dot<lhs_contracting_dimensions = [1], rhs_contracting_dimensions = [0]>}> : (tensor<64x32xf32>, tensor<32x128xf32>) -> tensor<64x128xf32>
  %s = "stablehlo.reduce"(%b, %zero) <{dimensions = array<i64: 0, 1>}> ({
  ^bb0(%p: tensor<f32>, %q: tensor<f32>):
    %m = "stablehlo.maximum"(%p, %q) : (tensor<f32>, tensor<f32>) -> tensor<f32>
    "stablehlo.return"(%m) : (tensor<f32>) -> ()
  }) : (tensor<64x128xf32>, tensor<f32>) -> tensor<f32>
  "func.return"(%r, %s) : (tensor<f32>, tensor<f32>) -> ()
}) : () -> ()

// -----

// Casts of one value are one value to XLA.
// CHECK-LABEL: sym_name = "casts"
// CHECK-COUNT-2: optimization_barrier
"func.func"() <{function_type = (tensor<64x32xf32>, tensor<64x32xf32>, tensor<32x128xf16>) -> (tensor<f32>, tensor<f32>), sym_name = "casts"}> ({
^bb0(%x: tensor<64x32xf32>, %y: tensor<64x32xf32>, %h: tensor<32x128xf16>):
  %zero = "stablehlo.constant"() <{value = dense<0.0> : tensor<f32>}> : () -> tensor<f32>
  %w0 = "stablehlo.convert"(%h) : (tensor<32x128xf16>) -> tensor<32x128xf32>
  %a = "stablehlo.dot_general"(%x, %w0) <{dot_dimension_numbers = #stablehlo.dot<lhs_contracting_dimensions = [1], rhs_contracting_dimensions = [0]>}> : (tensor<64x32xf32>, tensor<32x128xf32>) -> tensor<64x128xf32>
  %r = "stablehlo.reduce"(%a, %zero) <{dimensions = array<i64: 0, 1>}> ({
  ^bb0(%p: tensor<f32>, %q: tensor<f32>):
    %m = "stablehlo.maximum"(%p, %q) : (tensor<f32>, tensor<f32>) -> tensor<f32>
    "stablehlo.return"(%m) : (tensor<f32>) -> ()
  }) : (tensor<64x128xf32>, tensor<f32>) -> tensor<f32>
  %w1 = "stablehlo.convert"(%h) : (tensor<32x128xf16>) -> tensor<32x128xf32>
  %b = "stablehlo.dot_general"(%y, %w1) <{dot_dimension_numbers = #stablehlo.dot<lhs_contracting_dimensions = [1], rhs_contracting_dimensions = [0]>}> : (tensor<64x32xf32>, tensor<32x128xf32>) -> tensor<64x128xf32>
  %s = "stablehlo.reduce"(%b, %zero) <{dimensions = array<i64: 0, 1>}> ({
  ^bb0(%p: tensor<f32>, %q: tensor<f32>):
    %m = "stablehlo.maximum"(%p, %q) : (tensor<f32>, tensor<f32>) -> tensor<f32>
    "stablehlo.return"(%m) : (tensor<f32>) -> ()
  }) : (tensor<64x128xf32>, tensor<f32>) -> tensor<f32>
  "func.return"(%r, %s) : (tensor<f32>, tensor<f32>) -> ()
}) : () -> ()

// -----

// Both are needed together as it is: the merger costs nothing.
// CHECK-LABEL: sym_name = "together"
// CHECK-NOT: optimization_barrier
"func.func"() <{function_type = (tensor<64x32xf32>, tensor<64x32xf32>, tensor<32x128xf32>) -> (tensor<f32>, tensor<f32>), sym_name = "together"}> ({
^bb0(%x: tensor<64x32xf32>, %y: tensor<64x32xf32>, %w: tensor<32x128xf32>):
  %zero = "stablehlo.constant"() <{value = dense<0.0> : tensor<f32>}> : () -> tensor<f32>
  %a = "stablehlo.dot_general"(%x, %w) <{dot_dimension_numbers = #stablehlo.dot<lhs_contracting_dimensions = [1], rhs_contracting_dimensions = [0]>}> : (tensor<64x32xf32>, tensor<32x128xf32>) -> tensor<64x128xf32>
  %b = "stablehlo.dot_general"(%y, %w) <{dot_dimension_numbers = #stablehlo.dot<lhs_contracting_dimensions = [1], rhs_contracting_dimensions = [0]>}> : (tensor<64x32xf32>, tensor<32x128xf32>) -> tensor<64x128xf32>
  %r = "stablehlo.reduce"(%a, %zero) <{dimensions = array<i64: 0, 1>}> ({
  ^bb0(%p: tensor<f32>, %q: tensor<f32>):
    %m = "stablehlo.maximum"(%p, %q) : (tensor<f32>, tensor<f32>) -> tensor<f32>
    "stablehlo.return"(%m) : (tensor<f32>) -> ()
  }) : (tensor<64x128xf32>, tensor<f32>) -> tensor<f32>
  %s = "stablehlo.reduce"(%b, %zero) <{dimensions = array<i64: 0, 1>}> ({
  ^bb0(%p: tensor<f32>, %q: tensor<f32>):
    %m = "stablehlo.maximum"(%p, %q) : (tensor<f32>, tensor<f32>) -> tensor<f32>
    "stablehlo.return"(%m) : (tensor<f32>) -> ()
  }) : (tensor<64x128xf32>, tensor<f32>) -> tensor<f32>
  "func.return"(%r, %s) : (tensor<f32>, tensor<f32>) -> ()
}) : () -> ()

// -----

// The second needs the first: nothing is merged.
// CHECK-LABEL: sym_name = "dependent"
// CHECK-NOT: optimization_barrier
"func.func"() <{function_type = (tensor<64x32xf32>, tensor<64x32xf32>, tensor<32x128xf32>) -> (tensor<f32>, tensor<f32>), sym_name = "dependent"}> ({
^bb0(%x: tensor<64x32xf32>, %y: tensor<64x32xf32>, %w: tensor<32x128xf32>):
  %zero = "stablehlo.constant"() <{value = dense<0.0> : tensor<f32>}> : () -> tensor<f32>
  %a = "stablehlo.dot_general"(%x, %w) <{dot_dimension_numbers = #stablehlo.dot<lhs_contracting_dimensions = [1], rhs_contracting_dimensions = [0]>}> : (tensor<64x32xf32>, tensor<32x128xf32>) -> tensor<64x128xf32>
  %r = "stablehlo.reduce"(%a, %zero) <{dimensions = array<i64: 0, 1>}> ({
  ^bb0(%p: tensor<f32>, %q: tensor<f32>):
    %m = "stablehlo.maximum"(%p, %q) : (tensor<f32>, tensor<f32>) -> tensor<f32>
    "stablehlo.return"(%m) : (tensor<f32>) -> ()
  }) : (tensor<64x128xf32>, tensor<f32>) -> tensor<f32>
  %c = "stablehlo.broadcast_in_dim"(%r) <{broadcast_dimensions = array<i64>}> : (tensor<f32>) -> tensor<64x32xf32>
  %z = "stablehlo.multiply"(%y, %c) : (tensor<64x32xf32>, tensor<64x32xf32>) -> tensor<64x32xf32>
  %b = "stablehlo.dot_general"(%z, %w) <{dot_dimension_numbers = #stablehlo.dot<lhs_contracting_dimensions = [1], rhs_contracting_dimensions = [0]>}> : (tensor<64x32xf32>, tensor<32x128xf32>) -> tensor<64x128xf32>
  %s = "stablehlo.reduce"(%b, %zero) <{dimensions = array<i64: 0, 1>}> ({
  ^bb0(%p: tensor<f32>, %q: tensor<f32>):
    %m = "stablehlo.maximum"(%p, %q) : (tensor<f32>, tensor<f32>) -> tensor<f32>
    "stablehlo.return"(%m) : (tensor<f32>) -> ()
  }) : (tensor<64x128xf32>, tensor<f32>) -> tensor<f32>
  "func.return"(%r, %s) : (tensor<f32>, tensor<f32>) -> ()
}) : () -> ()

// -----

// A hint keeps it as it is written.
// CHECK-LABEL: sym_name = "forbidden"
// CHECK-NOT: optimization_barrier
"func.func"() <{function_type = (tensor<64x32xf32>, tensor<64x32xf32>, tensor<32x128xf32>) -> (tensor<f32>, tensor<f32>), sym_name = "forbidden"}> ({
^bb0(%x: tensor<64x32xf32>, %y: tensor<64x32xf32>, %w: tensor<32x128xf32>):
  %zero = "stablehlo.constant"() <{value = dense<0.0> : tensor<f32>}> : () -> tensor<f32>
  %a = "stablehlo.dot_general"(%x, %w) <{dot_dimension_numbers = #stablehlo.dot<lhs_contracting_dimensions = [1], rhs_contracting_dimensions = [0]>}> {mhlo.frontend_attributes = {farrier.fuse = "off"}} : (tensor<64x32xf32>, tensor<32x128xf32>) -> tensor<64x128xf32>
  %r = "stablehlo.reduce"(%a, %zero) <{dimensions = array<i64: 0, 1>}> ({
  ^bb0(%p: tensor<f32>, %q: tensor<f32>):
    %m = "stablehlo.maximum"(%p, %q) : (tensor<f32>, tensor<f32>) -> tensor<f32>
    "stablehlo.return"(%m) : (tensor<f32>) -> ()
  }) : (tensor<64x128xf32>, tensor<f32>) -> tensor<f32>
  %b = "stablehlo.dot_general"(%y, %w) <{dot_dimension_numbers = #stablehlo.dot<lhs_contracting_dimensions = [1], rhs_contracting_dimensions = [0]>}> {mhlo.frontend_attributes = {farrier.fuse = "off"}} : (tensor<64x32xf32>, tensor<32x128xf32>) -> tensor<64x128xf32>
  %s = "stablehlo.reduce"(%b, %zero) <{dimensions = array<i64: 0, 1>}> ({
  ^bb0(%p: tensor<f32>, %q: tensor<f32>):
    %m = "stablehlo.maximum"(%p, %q) : (tensor<f32>, tensor<f32>) -> tensor<f32>
    "stablehlo.return"(%m) : (tensor<f32>) -> ()
  }) : (tensor<64x128xf32>, tensor<f32>) -> tensor<f32>
  "func.return"(%r, %s) : (tensor<f32>, tensor<f32>) -> ()
}) : () -> ()
